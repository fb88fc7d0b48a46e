// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Containers in the background: listed, entered, watched, ended and removed, and nobody is lied to about them.

mod copies;
mod ending;
mod exec;
mod list;
mod logs;

use coracle_tests::{Host, Image};

/// Starts a container in the background that runs `script`.
fn start(host: &Host, name: &str, image: Image, script: &str) {
    host.container(image)
        .detached()
        .option("--name", name)
        .shell(script)
        .expect(0);
}

/// A script that ends only when it is made to.
const FOREVER: &str = "while :; do sleep 1; done";
