// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An entropy request is whatever chain the guest wrote: the answer fills its device-writable part and
//! stays under the limit.

#![no_main]

mod guest;

use std::io;

use coracle_devices::rng::{MAX_REQUEST, RequestError, fill};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|request: guest::Request| {
    let Ok(chain) = request.chain() else {
        return;
    };

    match fill(&chain, &mut io::repeat(0xa5)) {
        Ok(written) => assert_eq!(
            written as usize,
            MAX_REQUEST.min(chain.writable_len() as usize)
        ),
        Err(error) => {
            assert!(matches!(error, RequestError::NoRoom { .. }));
            assert_eq!(chain.writable_len(), 0);
        }
    }
});
