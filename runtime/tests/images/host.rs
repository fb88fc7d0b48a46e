// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A store of a test's own, and the program on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::registry::image::Repository;

/// What a command did.
pub struct Done {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Done {
    pub fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self {
            status: output.status.code().unwrap(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// What it printed, if it did well.
    pub fn ok(self) -> String {
        assert_eq!(self.status, 0, "{}", self.stderr);
        self.stdout
    }

    /// Why it failed.
    pub fn failed(self) -> String {
        assert_eq!(self.status, 125, "{}{}", self.stdout, self.stderr);
        self.stderr
    }
}

/// Where everything of a test is.
pub struct Host {
    pub directory: TempDir,
}

impl Host {
    pub fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    /// `coracle` with these words, which sees nothing of the user's settings.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coracle"));
        command
            .args(words)
            .env("CORACLE_ROOT", self.path("root"))
            .env("CORACLE_STATE", self.path("state"))
            .env("DOCKER_CONFIG", self.path("nothing"))
            .env_remove("REGISTRY_AUTH_FILE")
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("CORACLE_LOG")
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, words: &[&str]) -> Done {
        Done::of(self.command(words).output().unwrap())
    }

    /// The names of the images in the store.
    pub fn names(&self) -> Vec<String> {
        let names = self.run(&["images", "-q"]).ok();
        names.lines().map(str::to_owned).collect()
    }

    /// Files of the store below one of its directories.
    pub fn files(&self, below: &str) -> Vec<PathBuf> {
        let (mut files, mut pending) = (Vec::new(), vec![self.path("root/images").join(below)]);
        while let Some(directory) = pending.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let entry = entry.unwrap();
                match entry.file_type().unwrap().is_dir() {
                    true => pending.push(entry.path()),
                    false => files.push(entry.path()),
                }
            }
        }
        files
    }

    /// An image layout with the image `latest`; its path.
    pub fn layout(&self, name: &str, repository: &Repository) -> String {
        let path = self.path(name);
        repository.write(&path, "latest");
        path.to_str().unwrap().to_owned()
    }
}

/// An image with a layer that holds the file `name`.
pub fn image(name: &str) -> Repository {
    image_of(name, name.as_bytes())
}

pub fn image_of(name: &str, content: &[u8]) -> Repository {
    Repository::with_image(&[layer(&[(name, content)])])
}

/// A layer with these files.
pub fn layer(files: &[(impl AsRef<Path>, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, *content).unwrap();
    }
    archive.into_inner().unwrap()
}
