// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Images and servers for tests.
#![allow(dead_code)]

pub mod docker;
pub mod image;
pub mod server;

use std::time::Duration;

use coracle_oci::image::Name;
use coracle_registry::credentials::Credentials;
use coracle_registry::{Client, Layout, Options, Pulled, RegistryError, Retry, Timeouts};

/// Options that give up soon.
pub fn quick() -> Options {
    Options {
        retry: Retry {
            tries: 3,
            first: Duration::from_millis(1),
            longest: Duration::from_millis(2),
            total: Duration::from_secs(10),
        },
        timeouts: Timeouts {
            answer: Duration::from_secs(5),
            stall: Duration::from_millis(300),
            ..Timeouts::default()
        },
        ..Options::default()
    }
}

/// Pulls into a directory of its own.
pub fn pull(options: Options, name: &str) -> (tempfile::TempDir, Result<Pulled, RegistryError>) {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::open(directory.path()).unwrap();
    let name: Name = name.parse().unwrap();
    let result = Client::new(options).pull(&name, &layout, &());
    if let Ok(pulled) = &result {
        layout.name("pulled", &pulled.manifest).unwrap();
    }
    (directory, result)
}

/// Credentials of `user`.
pub fn password(password: &str) -> Credentials {
    Credentials::Password {
        user: "user".into(),
        password: password.into(),
    }
}

/// An error with all its causes.
pub fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
