// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The roles that `coracle` starts for itself: `coracle <word>`, with descriptors from 3 on.
//!
//! They are no part of the command line: nothing of them is promised to callers.

use std::process::ExitCode;

use coracle_virtiofs::passthrough::FsConfig;
use coracle_virtiofs::role::RoleConfig;

use crate::log;

/// What a process of a run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs the virtual machine. Descriptor 3 is its control socket.
    Vmm,
    /// Serves the shared directory. Descriptor 3 is the socket it listens on, 4 the directory, 5 the network namespace
    /// to enter; the word is the guest's memory in MiB, by which it is bounded what the guest may keep open.
    Fs,
}

/// The role this process was started in, if it was.
pub fn from_arguments() -> Option<Role> {
    let word = std::env::args_os().nth(1)?;
    [Role::Vmm, Role::Fs]
        .into_iter()
        .find(|role| word == role.word())
}

impl Role {
    /// What the role is called in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vmm => "vmm",
            Self::Fs => "fs",
        }
    }

    /// The word that stands for the role on a command line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Vmm => "role:vmm",
            Self::Fs => "role:fs",
        }
    }

    /// Lives the role; returns when its work is done or has failed.
    pub fn main(self) -> ExitCode {
        match self {
            Self::Vmm => coracle_vmm::role::main(),
            Self::Fs => serve_files(),
        }
    }
}

/// Serves the directory that was handed over, until the guest is gone.
fn serve_files() -> ExitCode {
    let memory = std::env::args().nth(2).and_then(|word| word.parse().ok());
    let config = RoleConfig {
        fs: memory.map_or_else(FsConfig::default, FsConfig::for_guest_memory),
        network: true,
        ..RoleConfig::default()
    };
    match coracle_virtiofs::role::main(None, config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::tell_failure(&anyhow::Error::new(error));
            ExitCode::FAILURE
        }
    }
}
