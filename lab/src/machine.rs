// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The emulated machine: the one place where QEMU's command line is written.
//!
//! Instruction counts depend on every word of it, and so does which snapshot can be restored; a
//! change here makes new snapshots. Two kinds of machine are known to be reliable with QEMU 7.2
//! (hundreds of starts without a hang); one CPU without instruction counting, or a newer QEMU with
//! a thread for each CPU, is known not to be.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::cache::Key;
use crate::progress::output;
use crate::protocol::PORT_NAME;

/// The emulator.
pub const EMULATOR: &str = "qemu-system-x86_64";

/// The only version line of the emulator that is used.
const EMULATOR_VERSION: &str = "7.2.";

/// Memory of a lab unless it is given, in MiB. What is not used costs nothing but a few tenths of a
/// second; payloads and images are held in it.
pub const DEFAULT_MEMORY_MIB: u32 = 3072;

/// What both kinds of machine have. The modern virtio devices stand here by their order, which
/// decides their PCI slots: root disk, payload disk, port.
const COMMON: [&str; 17] = [
    "-M",
    "q35",
    "-nodefaults",
    "-no-user-config",
    "-display",
    "none",
    "-no-reboot",
    "-serial",
    "chardev:console",
    "-mon",
    "chardev=monitor,mode=control",
    "-device",
    "virtio-blk-pci,drive=root",
    "-device",
    "virtio-blk-pci,drive=payload",
    "-device",
    "virtio-serial-pci",
];

/// The kernel's command line. The emulated timers are trusted rather than measured.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 panic=-1 quiet mitigations=off tsc=reliable \
     clocksource=tsc no_timer_check nokaslr random.trust_cpu=on";

/// Two CPUs, as fast as emulation goes. For tests.
const FAST: [&str; 6] = [
    "-accel",
    "tcg,thread=multi",
    "-smp",
    "2",
    "-cpu",
    "max,la57=off,-erms,-fsrm",
];

/// One CPU on which the time stamp counter counts instructions, and time stands still between
/// them. For benchmarks. Without ERMS and FSRM because each byte of a `rep` counts.
const COUNTING: [&str; 10] = [
    "-accel",
    "tcg,thread=single",
    "-smp",
    "1",
    "-cpu",
    "max,la57=off,-erms,-fsrm",
    "-icount",
    "shift=0,sleep=off",
    "-rtc",
    "base=2026-01-01,clock=vm",
];

/// What a lab is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Tests: as fast as it goes.
    Fast,
    /// Benchmarks: instructions are counted.
    Counting,
}

impl Kind {
    /// The kind's name in the cache.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Counting => "counting",
        }
    }
}

/// A machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// What it is for.
    pub kind: Kind,
    /// Its memory, in MiB.
    pub memory_mib: u32,
}

/// What a machine boots.
#[derive(Clone, Debug)]
pub struct BootFiles {
    /// The uncompressed kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
    /// The root disk, which stays as it is.
    pub root: PathBuf,
    /// The key of all three.
    pub key: Key,
}

/// Descriptors that the emulator inherits, each under a number of its own.
pub mod descriptor {
    use std::os::fd::RawFd;

    /// A connected socket for the monitor protocol.
    pub const MONITOR: RawFd = 3;
    /// A connected socket for the first serial line.
    pub const CONSOLE: RawFd = 4;
    /// A connected socket for the virtio-serial port.
    pub const PORT: RawFd = 5;
    /// The payload disk's file, open for reading.
    pub const PAYLOAD: RawFd = 6;
    /// The machine's saved state, if it is to be restored.
    pub const STATE: RawFd = 7;
}

impl Machine {
    /// The arguments that make the machine what it is, without where its files are.
    fn shape(self) -> Vec<String> {
        let kind: &[&str] = match self.kind {
            Kind::Fast => &FAST,
            Kind::Counting => &COUNTING,
        };
        let port = format!("virtserialport,chardev=port,name={PORT_NAME}");
        let memory = format!("{}M", self.memory_mib);
        kind.iter()
            .chain(&COMMON)
            .copied()
            .chain([
                "-device",
                &port,
                "-m",
                &memory,
                "-append",
                KERNEL_COMMAND_LINE,
            ])
            .map(str::to_owned)
            .collect()
    }

    /// The emulator's arguments, to boot the machine or to restore its state.
    #[must_use]
    pub fn arguments(self, files: &BootFiles, restored: bool) -> Vec<String> {
        let mut arguments = self.shape();
        let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        add("-kernel", files.kernel.display().to_string());
        add("-initrd", files.initrd.display().to_string());
        add("-blockdev", read_only_disk("root", &files.root));
        add("-add-fd", format!("fd={},set=1", descriptor::PAYLOAD));
        add(
            "-blockdev",
            read_only_disk("payload", Path::new("/dev/fdset/1")),
        );
        for (name, number) in [
            ("monitor", descriptor::MONITOR),
            ("console", descriptor::CONSOLE),
            ("port", descriptor::PORT),
        ] {
            add("-chardev", format!("socket,id={name},fd={number}"));
        }
        if restored {
            add("-incoming", format!("fd:{}", descriptor::STATE));
        }
        arguments
    }

    /// The key of this machine's snapshot with these files and this emulator.
    #[must_use]
    pub fn snapshot_key(self, files: &BootFiles, emulator: &str) -> Key {
        let mut inputs = self.shape();
        inputs.extend([files.key.to_string(), emulator.to_owned()]);
        Key::of(inputs)
    }

    /// The snapshots' family in the cache.
    #[must_use]
    pub fn family(self) -> String {
        format!("snapshot-{}-{}M", self.kind.name(), self.memory_mib)
    }
}

fn read_only_disk(name: &str, path: &Path) -> String {
    // A comma in a value is doubled.
    let path = path.display().to_string().replace(',', ",,");
    format!("driver=raw,node-name={name},read-only=on,file.driver=file,file.filename={path}")
}

/// The emulator's version, if it is one that is used.
///
/// # Errors
///
/// If it is missing, or of another version: newer ones hang now and then.
pub fn emulator_version() -> Result<String> {
    let text = output(Command::new(EMULATOR).arg("--version"))?;
    let line = text.lines().next().unwrap_or_default();
    ensure!(
        line.contains(&format!("version {EMULATOR_VERSION}")),
        "the lab needs QEMU {EMULATOR_VERSION}x, Debian 12's; here is {line:?} (`make deps`)"
    );
    Ok(line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> BootFiles {
        BootFiles {
            kernel: "/c/vmlinux".into(),
            initrd: "/c/initrd".into(),
            root: "/c/a,b/root.img".into(),
            key: Key::of(["files"]),
        }
    }

    #[test]
    fn snapshot_key_depends_on_kind_memory_files_and_emulator() {
        let machine = |kind, memory_mib| Machine { kind, memory_mib };
        let other = BootFiles {
            key: Key::of(["others"]),
            ..files()
        };
        let keys = [
            machine(Kind::Fast, 2048).snapshot_key(&files(), "7.2.1"),
            machine(Kind::Counting, 2048).snapshot_key(&files(), "7.2.1"),
            machine(Kind::Fast, 4096).snapshot_key(&files(), "7.2.1"),
            machine(Kind::Fast, 2048).snapshot_key(&other, "7.2.1"),
            machine(Kind::Fast, 2048).snapshot_key(&files(), "7.2.2"),
        ];

        let distinct: std::collections::HashSet<_> = keys.iter().map(Key::as_str).collect();

        assert_eq!(distinct.len(), keys.len());
    }

    #[test]
    fn restored_machine_differs_from_a_booted_one_only_by_its_state() {
        let machine = Machine {
            kind: Kind::Fast,
            memory_mib: 2048,
        };

        let booted = machine.arguments(&files(), false);
        let restored = machine.arguments(&files(), true);

        assert_eq!(
            restored,
            [booted, vec!["-incoming".into(), "fd:7".into()]].concat()
        );
    }

    #[test]
    fn comma_in_a_path_does_not_end_the_option() {
        let machine = Machine {
            kind: Kind::Fast,
            memory_mib: 2048,
        };

        let arguments = machine.arguments(&files(), false);

        assert!(
            arguments
                .iter()
                .any(|a| a.ends_with("file.filename=/c/a,,b/root.img"))
        );
    }
}
