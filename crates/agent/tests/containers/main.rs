// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Makes containers on the machine at hand, in namespaces of their own, out of a root file system of busybox.
//!
//! This program is also their first process: what a container executes again to be born is the program that made it. It
//! needs root, a static busybox, and a kernel with cgroup v2; without them its cases count as ignored.

use std::process::ExitCode;

use coracle_agent::init::Role;
use libtest_mimic::{Arguments, Trial};

/// Functions, each with its name.
macro_rules! cases {
    ($($case:ident),+ $(,)?) => { &[$((stringify!($case), $case as $crate::Case)),+] };
}

mod bundle;
mod cases;
mod disks;
mod exec;
mod execs;
mod hostile;
mod machine;
mod terminals;

type Case = fn(&machine::Machine);

fn main() -> ExitCode {
    if let Some(role) = Role::of(std::env::args().nth(1).as_deref()) {
        return coracle_agent::init::main(role);
    }
    let arguments = Arguments::from_args();
    let machine = machine::Machine::prepare();
    if let Err(lack) = &machine {
        eprintln!("containers: ignored, since {lack}");
    }
    let disk_lack = machine
        .as_ref()
        .ok()
        .and_then(|machine| machine.disks.as_ref().err());
    if let Some(lack) = disk_lack {
        eprintln!("containers: cases of disks ignored, since {lack}");
    }
    let of_disks = (disks::ALL, disk_lack.is_some());
    let others = [cases::ALL, execs::ALL, terminals::ALL, hostile::ALL].map(|cases| (cases, false));
    let trials = others
        .into_iter()
        .chain([of_disks])
        .flat_map(|(cases, lacking)| cases.iter().map(move |case| (case, lacking)))
        .map(|((name, case), lacking)| {
            let ignored = lacking || machine.is_err();
            let machine = machine.as_ref().ok().cloned();
            Trial::test(*name, move || {
                let machine = machine.ok_or("this machine cannot make containers")?;
                case(&machine);
                Ok(())
            })
            .with_ignored_flag(ignored)
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Ok(machine) = machine {
        machine.leave(conclusion.has_failed());
    }
    conclusion.exit_code()
}
