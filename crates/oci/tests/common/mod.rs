// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tar streams, images and listings of trees, for tests.
#![allow(dead_code, reason = "each test file uses some of it")]

pub mod image;
pub mod tar;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// All below `root`, sorted, one line each: type, mode, name, and what it holds or leads to.
pub fn listing(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    list(root, root, &mut lines);
    lines.sort();
    lines
}

fn list(root: &Path, directory: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        let name = text(path.strip_prefix(root).unwrap().as_os_str().as_bytes());
        let mode = metadata.mode() & 0o7777;
        let kind = metadata.file_type();
        lines.push(if kind.is_dir() {
            format!("{name} dir {mode:o}")
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).unwrap();
            format!("{name} -> {}", text(target.as_os_str().as_bytes()))
        } else if kind.is_file() {
            let content = text(&fs::read(&path).unwrap());
            format!("{name} file {mode:o} {content}")
        } else if kind.is_fifo() {
            format!("{name} fifo {mode:o}")
        } else {
            format!("{name} device {mode:o} {}", metadata.rdev())
        });
        if kind.is_dir() {
            list(root, &path, lines);
        }
    }
}

/// Bytes as text; those that are none are told apart, as `\xff`.
pub fn text(bytes: &[u8]) -> String {
    let chunks = bytes.utf8_chunks();
    chunks
        .map(|chunk| format!("{}{}", chunk.valid(), chunk.invalid().escape_ascii()))
        .collect()
}

/// The text of an error and of all its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
