// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pulls from registries that fail, lie and stall: from a server that does what each test tells it.

#[path = "../common/mod.rs"]
mod common;
mod connections;
mod content;
mod credentials;
mod ground;
mod images;
mod plain;
mod redirects;
mod sinks;
mod statuses;
