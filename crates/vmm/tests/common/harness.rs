// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tests that are counted as ignored where what they need is missing.

use std::fs::File;
use std::process::{Command, Stdio};

use libtest_mimic::{Arguments, Trial};

/// What the tests of a file need, and whether it is here.
#[derive(Clone, Copy)]
pub enum Needs {
    /// Nothing that any machine lacks.
    Nothing,
    /// `/dev/kvm`, to run a guest.
    Kvm,
    /// `/dev/kvm`, and root to jail the process that runs the guest.
    KvmAndRoot,
    /// As [`KvmAndRoot`](Self::KvmAndRoot), and gdb.
    KvmRootAndGdb,
    /// As [`KvmRootAndGdb`](Self::KvmRootAndGdb), and a CPU that runs guests itself: KVM without one emulates their
    /// kernels, and not all of their instructions.
    KvmRootGdbAndHardware,
    /// As [`KvmAndRoot`](Self::KvmAndRoot), and QEMU's storage daemon.
    KvmRootAndStorageDaemon,
    /// As [`KvmAndRoot`](Self::KvmAndRoot), and `/dev/net/tun`, to make taps.
    KvmRootAndTap,
}

impl Needs {
    fn are_met(self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Kvm => has_kvm(),
            Self::KvmAndRoot => has_kvm() && rustix::process::geteuid().is_root(),
            Self::KvmRootAndGdb => Self::KvmAndRoot.are_met() && has_gdb(),
            Self::KvmRootGdbAndHardware => Self::KvmRootAndGdb.are_met() && has_hardware(),
            Self::KvmRootAndTap => Self::KvmAndRoot.are_met() && opens("/dev/net/tun"),
            Self::KvmRootAndStorageDaemon => {
                Self::KvmAndRoot.are_met() && has_program("qemu-storage-daemon")
            }
        }
    }
}

fn has_kvm() -> bool {
    opens("/dev/kvm")
}

fn opens(device: &str) -> bool {
    let mut options = File::options();
    options.read(true).write(true).open(device).is_ok()
}

fn has_gdb() -> bool {
    has_program("gdb")
}

fn has_program(name: &str) -> bool {
    let mut program = Command::new(name);
    program.arg("--version").stdout(Stdio::null());
    program.status().is_ok_and(|status| status.success())
}

fn has_hardware() -> bool {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut flags = cpus.split_whitespace();
    flags.any(|flag| flag == "vmx" || flag == "svm")
}

/// Functions with their names.
#[macro_export]
macro_rules! named {
    ($function:ident) => {
        (stringify!($function), $function)
    };
    ($($function:ident,)+) => {
        [$((stringify!($function), $function as fn())),+]
    };
}

/// The tests of a file.
pub struct Tests(Vec<Trial>);

impl Tests {
    /// None yet.
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// With these tests, which [`named!`](crate::named) gives their names.
    pub fn tests(
        mut self,
        needs: Needs,
        tests: impl IntoIterator<Item = (&'static str, fn())>,
    ) -> Self {
        let trials = tests.into_iter();
        self.0
            .extend(trials.map(|(name, test)| trial(needs, name.to_owned(), test)));
        self
    }

    /// With a test of this function for each named case.
    pub fn cases<C: Send + 'static>(
        mut self,
        needs: Needs,
        (name, test): (&'static str, impl Fn(C) + Copy + Send + 'static),
        cases: impl IntoIterator<Item = (&'static str, C)>,
    ) -> Self {
        self.0.extend(
            cases.into_iter().map(|(case, values)| {
                trial(needs, format!("{name}::{case}"), move || test(values))
            }),
        );
        self
    }

    /// Runs them as the command line says, and ends the process.
    pub fn run(self) -> ! {
        libtest_mimic::run(&Arguments::from_args(), self.0).exit()
    }
}

fn trial(needs: Needs, name: String, test: impl FnOnce() + Send + 'static) -> Trial {
    let run = move || {
        test();
        Ok(())
    };
    Trial::test(name, run).with_ignored_flag(!needs.are_met())
}
