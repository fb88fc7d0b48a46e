// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle check`: what this host has and lacks for running virtual machines, in the order in
//! which a run needs it, each lack with its remedy.

mod configuration;
mod host;
mod kvm;
mod network;
mod report;

use std::path::Path;

use anyhow::Result;
use coracle_network::{NetworkConfig, check};

use self::report::{Finding, Report};
use crate::cli::{CheckArguments, Directories};
use crate::guest_files::GuestFiles;
use crate::print::{print, print_json};

/// Looks at the host and prints the findings. The status is 0 only if `run` can work.
pub fn check(directories: &Directories, arguments: &CheckArguments) -> Result<u8> {
    let findings = findings(directories);
    if arguments.json {
        print_json(&Report::of(&findings))?;
    } else {
        print(&report::text(&findings))?;
    }
    Ok(if report::can_run(&findings) { 0 } else { 1 })
}

fn findings(directories: &Directories) -> Vec<Finding> {
    let config = directories.read_config();
    let guest = GuestFiles::find(&directories.guest, None, None);
    let release = host::read_text("/proc/sys/kernel/osrelease");
    let mut findings = vec![
        configuration::configuration(&config),
        kvm::device(Path::new("/dev/kvm")),
        kvm::cpu(
            &host::read_text("/proc/cpuinfo"),
            Path::new("/dev/kvm").exists(),
        ),
        kvm::capabilities(),
        host::privilege(),
        host::kernel(&release),
        host::overlay(
            &host::read_text("/proc/filesystems"),
            &host::read_text(&format!("/lib/modules/{}/modules.dep", release.trim())),
        ),
        host::guest_file("guest kernel", &guest.kernel, b"\x7fELF"),
        host::guest_file("guest initial file system", &guest.initramfs, b"070701"),
        host::store(&directories.root),
        host::memory(&host::read_text("/proc/meminfo")),
        host::huge_pages(&host::read_text(
            "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
        )),
        host::cgroups(Path::new("/sys/fs/cgroup")),
    ];
    let network = config.map_or_else(|_| NetworkConfig::default(), |config| config.network);
    findings.extend(network::host_nat(&check::check(&network)));
    findings
}
