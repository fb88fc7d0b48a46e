// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Port mappings as users write them.
#![no_main]

use coracle_network::PortMapping;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(mapping) = text.parse::<PortMapping>() {
        assert_eq!(
            mapping
                .to_string()
                .parse::<PortMapping>()
                .expect("it was printed so"),
            mapping
        );
    }
});
