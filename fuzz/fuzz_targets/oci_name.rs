// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a user calls an image by: a name is the same after it was written, whole or short, and holds nothing that could
//! lead out of a directory or a line.
#![no_main]

use coracle_oci::image::{Name, Reference};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let reference = match Reference::parse(text) {
        Ok(reference) => reference,
        Err(error) => {
            assert!(!error.to_string().contains(char::is_control), "{error:?}");
            return;
        }
    };
    let Reference::Name(name) = reference else {
        assert!(text.starts_with(['/', '.']));
        return;
    };
    assert_eq!(name.to_string().parse::<Name>().as_ref(), Ok(&name));
    assert_eq!(name.familiar().parse::<Name>().as_ref(), Ok(&name));
    assert!(name.to_string().bytes().all(|byte| byte.is_ascii_graphic()));
    let mut parts = name.repository().split('/').chain(name.tag());
    assert!(parts.all(|part| !part.is_empty() && !part.starts_with('.')));
    assert!(name.tag().is_some() || name.digest().is_some());
});
