// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! CNI configuration files: administrators', but read before anybody knows whose they are.
#![no_main]

use coracle_network::fuzzing::ConfigurationList;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(list) = ConfigurationList::parse(bytes) {
        // What was taken is remembered on disk, and read again for DEL.
        let written = serde_json::to_vec(&list).expect("it came from JSON");
        let read: ConfigurationList = serde_json::from_slice(&written).expect("it was written so");
        assert_eq!(list, read);
    }
});
