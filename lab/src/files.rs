// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a lab boots: kernel, initramfs, root disk.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use coracle_guest::modules::ModuleTree;
use coracle_guest::{initramfs, vmlinuz};

use crate::cache::{Cache, Key};
use crate::debian::{self, Kernel};
use crate::machine::BootFiles;
use crate::progress::Step;

/// Modules loaded from the start: the lab's own devices first, then what a KVM host for containers
/// needs. The rest is on the root disk, for `modprobe`.
const MODULES: [&str; 17] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "overlay",
    "kvm",
    "kvm-amd",
    "tun",
    "vhost_net",
    "vhost_vsock",
    "vsock_loopback",
    "fuse",
    "virtiofs",
    "loop",
    "veth",
    "bridge",
    "br_netfilter",
    "nf_tables",
];

/// The static program of the lab's inside.
const GUEST_PROGRAM: &str = "lab-guest";

/// Makes what is missing of the boot files.
///
/// # Errors
///
/// If something cannot be fetched or made.
pub fn prepare(cache: &Cache) -> Result<BootFiles> {
    let program_path = guest_program()?;
    let program = fs::read(&program_path)
        .with_context(|| format!("cannot read {}", program_path.display()))?;
    let kernel = debian::kernel(cache)?;
    let root = debian::root_disk(cache, &kernel)?;
    let modules = MODULES.join(",");
    let boot_key = Key::of([&program, kernel.release().as_bytes(), modules.as_bytes()]);
    let boot = cache.entry("boot", &boot_key, |folder| {
        make_boot_files(&kernel, &program, folder)
    })?;
    let root_key = debian::root_disk_key(&kernel);
    Ok(BootFiles {
        kernel: boot.join("vmlinux"),
        initrd: boot.join("initrd"),
        root,
        key: Key::of([boot_key.as_str(), root_key.as_str()]),
    })
}

fn make_boot_files(kernel: &Kernel, program: &[u8], folder: &Path) -> Result<()> {
    let step = Step::begin("make the lab's kernel and initramfs");
    let path = kernel.vmlinuz();
    let image = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let vmlinux = vmlinuz::extract(&image)
        .with_context(|| format!("cannot use the kernel {}", path.display()))?;
    fs::write(folder.join("vmlinux"), vmlinux)?;
    let modules = ModuleTree::open(&kernel.modules())?.resolve(MODULES)?;
    let mut archive = Vec::new();
    initramfs::write(&mut archive, program, &modules)?;
    fs::write(folder.join("initrd"), archive)?;
    step.done();
    Ok(())
}

/// Finds the program for the lab's inside: `$CORACLE_LAB_GUEST`, or where `make` builds it.
fn guest_program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("CORACLE_LAB_GUEST") {
        return Ok(path.into());
    }
    let executable = std::env::current_exe().context("cannot find the lab's own program")?;
    // target/<profile>/lab, or target/<triple>/<profile>/lab.
    for target in executable.ancestors().skip(2).take(2) {
        let path = target
            .join("x86_64-unknown-linux-gnu/agent")
            .join(GUEST_PROGRAM);
        if path.exists() {
            return Ok(path);
        }
    }
    bail!("the static program {GUEST_PROGRAM} is not built (`make lab` builds it)")
}
