// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The programs that are measured, each made to write its first byte into a pipe.

use std::fs::{self, File};
use std::io::{PipeReader, Write, pipe};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use command_fds::{CommandFdExt, FdMapping};
use coracle_guest::cpio::Archive;
use coracle_tests::guests;
use coracle_vmm::{Config, EmptyNetwork, Vsock};
use rustix::fs::{MemfdFlags, memfd_create};
use tempfile::TempDir;

/// MiB of every measured guest.
const MEMORY: u64 = 128;
/// What both VMMs tell a real kernel: nothing that costs a probe, nothing that writes.
const COMMAND_LINE: &str = "quiet panic=-1 reboot=k cryptomgr.notests tsc=reliable no_timer_check";

/// Guests, as files.
pub struct Guests {
    directory: TempDir,
    stock: PathBuf,
}

/// A kernel, and the initial file system it starts with.
#[derive(Clone, Copy)]
pub enum Guest {
    /// Three `out` instructions.
    Tiny,
    /// A real kernel up to its first process.
    Stock,
}

impl Guests {
    /// Makes the tiny guests; the real kernel is that of `guest`.
    pub fn new(guest: &Path) -> Result<Self> {
        let directory = TempDir::new().context("cannot make a temporary directory")?;
        fs::write(directory.path().join("tiny"), guests::speaking())?;
        let mut archive = Archive::new(File::create(directory.path().join("init.cpio"))?);
        archive.file("init", 0o755, &guests::speaking_init())?;
        archive.finish()?;
        Ok(Self {
            stock: guest.join("vmlinux"),
            directory,
        })
    }

    fn kernel(&self, guest: Guest) -> PathBuf {
        match guest {
            Guest::Tiny => self.directory.path().join("tiny"),
            Guest::Stock => self.stock.clone(),
        }
    }

    fn initrd(&self, guest: Guest) -> Option<PathBuf> {
        matches!(guest, Guest::Stock).then(|| self.directory.path().join("init.cpio"))
    }

    /// The floor.
    pub fn floor(&self, floor: &Path, guest: Guest) -> Result<(Command, PipeReader)> {
        let (read, write) = pipe()?;
        let mut command = Command::new(floor);
        command
            .arg(self.kernel(guest))
            .arg(self.initrd(guest).unwrap_or_else(|| "-".into()))
            .args([MEMORY.to_string().as_str(), COMMAND_LINE])
            .stdout(write);
        Ok((command, read))
    }

    /// The VMM role with so many vCPUs, of which the tiny guest starts one, and with the devices that every container's
    /// machine has but the shared directory. The network namespace it enters is made before: `coracle run` makes it beside
    /// other work, for all of its processes.
    pub fn vmm(&self, coracle: &Path, guest: Guest, vcpus: u8) -> Result<(Command, PipeReader)> {
        let (read, write) = pipe()?;
        let sockets = self.directory.path().join("sockets");
        fs::create_dir_all(&sockets)?;
        let uds = sockets.join("vsock");
        let _ = fs::remove_file(&uds);
        let (mut ours, theirs) = UnixStream::pair()?;
        let mut descriptors: Vec<OwnedFd> = vec![
            theirs.into(),
            File::open(self.kernel(guest))?.into(),
            write.into(),
        ];
        descriptors.push(memfd_create("console", MemfdFlags::CLOEXEC)?);
        descriptors.push(EmptyNetwork::begin()?.finish()?);
        if let Some(initrd) = self.initrd(guest) {
            descriptors.push(File::open(initrd)?.into());
        }
        let config = Config {
            initrd: self.initrd(guest).map(|_| 8),
            cmdline: COMMAND_LINE.into(),
            console_log: Some(6),
            serial_log: Some(5),
            vsock: Some(Vsock { cid: 3, uds }),
            rng: true,
            network: Some(7),
            ..Config::new(vcpus, MEMORY, 4)
        };
        let mut text = serde_json::to_vec(&config)?;
        text.push(b'\n');
        ours.write_all(&text)?;
        let mut command = Command::new(coracle);
        command
            .arg("role:vmm")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let mappings = (3..)
            .zip(descriptors)
            .map(|(child_fd, parent_fd)| FdMapping {
                parent_fd,
                child_fd,
            });
        command.fd_mappings(mappings.collect())?;
        // The machine lives for as long as its control socket: it is ended by a signal instead.
        std::mem::forget(ours);
        Ok((command, read))
    }
}

/// `coracle run` of a cached image, to be measured after it was run once.
pub struct Runs {
    directory: TempDir,
    coracle: PathBuf,
    guest: PathBuf,
    image: PathBuf,
    kernel: Kernel,
}

/// What the guests of runs start from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// A distribution's.
    Stock,
    /// The one that is made for such guests (`make kernel`).
    Small,
}

impl Runs {
    /// Runs of `image` with `kernel` of the directory `guest`, with directories of their own.
    pub fn new(coracle: &Path, guest: &Path, kernel: Kernel, image: PathBuf) -> Result<Self> {
        ensure!(
            kernel == Kernel::Stock || guest.join("small/vmlinux").exists(),
            "there is no small kernel in {} (make kernel)",
            guest.display()
        );
        let directory = TempDir::new().context("cannot make a temporary directory")?;
        Ok(Self {
            directory,
            coracle: coracle.into(),
            guest: guest.into(),
            image,
            kernel,
        })
    }

    /// Runs it once, which unpacks it.
    pub fn unpack(&self) -> Result<()> {
        let status = self
            .command(&["true"])
            .status()
            .context("cannot run coracle")?;
        ensure!(
            status.success(),
            "the run that unpacks the image failed: {status}"
        );
        Ok(())
    }

    /// The command that runs `words` in a container.
    pub fn command(&self, words: &[&str]) -> Command {
        self.with(&[], words)
    }

    /// The command that runs `words` in a container that takes our input.
    pub fn interactive(&self, words: &[&str]) -> Command {
        self.with(&["-i"], words)
    }

    /// The same with options of `coracle run`.
    pub fn with(&self, options: &[&str], words: &[&str]) -> Command {
        let mut command = Command::new(&self.coracle);
        command
            .arg("--root")
            .arg(self.directory.path().join("root"))
            .arg("--state")
            .arg(self.directory.path().join("state"))
            .arg("--guest")
            .arg(&self.guest)
            .args(["run", "--rm", "--network", "none", "--memory"])
            .arg(MEMORY.to_string())
            .args(options);
        // The small one is taken where it is there and none is named.
        if self.kernel == Kernel::Stock {
            command
                .arg("--kernel")
                .arg(self.guest.join("vmlinux"))
                .arg("--initrd")
                .arg(self.guest.join("initramfs.cpio"));
        }
        command.arg(&self.image).args(words).stdin(Stdio::null());
        command
    }
}
