// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tests that are counted as ignored where what they need is missing.

use std::fs::File;

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
}

impl Needs {
    fn are_met(self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Kvm => has_kvm(),
            Self::KvmAndRoot => has_kvm() && rustix::process::geteuid().is_root(),
        }
    }
}

fn has_kvm() -> bool {
    let mut options = File::options();
    options.read(true).write(true).open("/dev/kvm").is_ok()
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
