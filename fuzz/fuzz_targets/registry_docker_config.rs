// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Any bytes as docker's `config.json`, asked for any registry.
#![no_main]

use arbitrary::Arbitrary;
use coracle_registry::credentials::DockerConfig;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input<'i> {
    registry: &'i str,
    repository: &'i str,
    file: &'i [u8],
}

fuzz_target!(|input: Input<'_>| {
    match DockerConfig::from_json(input.file) {
        Ok(config) => {
            if let Ok(Some(entry)) = config.entry(input.registry, input.repository) {
                assert!(entry.helper.is_some() || entry.credentials.is_some());
            }
        }
        Err(error) => assert!(!error.contains(char::is_control)),
    }
});
