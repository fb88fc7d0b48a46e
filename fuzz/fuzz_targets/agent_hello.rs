// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The first line that a guest writes to the host: of what follows it nothing is taken, of a line without end
//! no more than its bound, and what is said of it has no control characters.
#![no_main]

use std::error::Error;

use arbitrary::Arbitrary;
use coracle_agent_api::{Hello, HelloError};
use libfuzzer_sys::fuzz_target;

/// Most bytes of a line.
const LINE_MAX: usize = 1024;

#[derive(Arbitrary, Debug)]
enum Stream<'i> {
    Line {
        version: String,
        /// Members after it.
        more: &'i [u8],
        rest: &'i [u8],
    },
    Bytes(&'i [u8]),
}

impl Stream<'_> {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Line {
                version,
                more,
                rest,
            } => {
                let version = serde_json::to_vec(version).expect("text is JSON");
                [b"{\"version\":", &version[..], more, b"}\n", rest].concat()
            }
            Self::Bytes(bytes) => bytes.to_vec(),
        }
    }
}

fn check_message(error: &HelloError) {
    let mut cause: Option<&dyn Error> = Some(error);
    while let Some(error) = cause {
        let message = error.to_string();
        assert!(!message.contains(char::is_control), "{message:?}");
        assert!(message.len() < 8 * LINE_MAX);
        cause = error.source();
    }
}

fuzz_target!(|stream: Stream<'_>| {
    let bytes = stream.bytes();
    let mut rest = bytes.as_slice();

    let hello = Hello::read(&mut rest);

    let taken = &bytes[..bytes.len() - rest.len()];
    assert!(taken.len() <= LINE_MAX);
    match hello {
        Ok(hello) => {
            assert_eq!(
                taken.iter().position(|&byte| byte == b'\n'),
                taken.len().checked_sub(1)
            );
            let mut line = Vec::new();
            hello.write(&mut line).expect("a Vec takes everything");
            if line.len() <= LINE_MAX {
                assert_eq!(Hello::read(line.as_slice()).expect("a hello"), hello);
            }
        }
        Err(error) => check_message(&error),
    }
});
