// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A console buffer is whatever chain the guest wrote: output is what is readable in it, up to the limit,
//! and input fills what is writable.

#![no_main]

mod guest;

use coracle_devices::console::{MAX_TRANSMIT, receive, transmit};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|case: (guest::Request, Vec<u8>)| {
    let (buffer, input) = case;
    let Ok(chain) = buffer.chain() else {
        return;
    };

    let mut output = Vec::new();
    let transmitted = transmit(&chain, &mut output).expect("a Vec takes everything");
    assert_eq!(transmitted, output.len());
    assert_eq!(transmitted, MAX_TRANSMIT.min(chain.readable_len() as usize));

    let received = receive(&chain, &input);
    assert_eq!(
        received as usize,
        input.len().min(chain.writable_len() as usize)
    );
});
