// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Any answer as an index or a manifest.
#![no_main]

use arbitrary::Arbitrary;
use coracle_registry::document::Document;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input<'i> {
    announced: Option<&'i str>,
    document: &'i [u8],
}

fuzz_target!(|input: Input<'_>| {
    match Document::parse(input.announced, input.document) {
        Ok((Document::Index(_), media_type)) => {
            assert!(media_type.contains("index") || media_type.contains("list"));
        }
        Ok((Document::Manifest(_), media_type)) => assert!(media_type.contains(".manifest.")),
        Err(error) => assert!(!error.to_string().contains(char::is_control)),
    }
});
