// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Any header as challenges.
#![no_main]

use coracle_registry::Challenge;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|header: &str| {
    for challenge in Challenge::parse(header) {
        assert!(!challenge.scheme.is_empty());
        assert!(challenge.scheme.bytes().all(|byte| byte.is_ascii_graphic()));
        let length: usize = challenge.parameters.values().map(String::len).sum();
        assert!(length <= header.len(), "nothing is made up");
    }
});
