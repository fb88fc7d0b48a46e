// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel and the root file system, from Debian's packages.
//!
//! Where packages come from is this machine's business: the sources of its own apt are used.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::cache::{Cache, Key};
use crate::progress::{Step, output};

/// The Debian release of the lab. Its containerd and runc are the oldest that are supported.
const SUITE: &str = "bookworm";

/// The package that depends on the current kernel for clouds. It has what a KVM host needs, and an
/// entry for PVH boot, and leaves out the drivers of real hardware.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";

/// What tests want in the lab, beside Debian's essential packages.
const PACKAGES: [&str; 29] = [
    "acl",
    "attr",
    "busybox-static",
    "ca-certificates",
    "containerd",
    "containernetworking-plugins",
    "crash",
    "crun",
    "curl",
    "dpdk-dev",
    "e2fsprogs",
    "file",
    "gdb-minimal",
    "iproute2",
    "iptables",
    "iputils-ping",
    "jq",
    "kmod",
    "mount",
    "netcat-openbsd",
    "nftables",
    "openvswitch-switch",
    "procps",
    "psmisc",
    "qemu-system-common",
    "runc",
    "socat",
    "strace",
    "umoci",
];

/// What nobody reads in a lab.
const EXCLUDED: [&str; 4] = [
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
];

/// The root disk's size beyond its files, in bytes: the file system's own tables.
const DISK_MARGIN: u64 = 64 << 20;

/// An unpacked kernel package.
#[derive(Clone, Debug)]
pub struct Kernel {
    folder: PathBuf,
    release: String,
}

impl Kernel {
    /// The kernel's release, as `uname -r` prints it.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The package's root folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The compressed kernel.
    #[must_use]
    pub fn vmlinuz(&self) -> PathBuf {
        self.folder
            .join("boot")
            .join(format!("vmlinuz-{}", self.release))
    }

    /// The folder of the kernel's modules.
    #[must_use]
    pub fn modules(&self) -> PathBuf {
        self.folder.join("lib/modules").join(&self.release)
    }

    fn in_folder(folder: PathBuf) -> Result<Self> {
        let modules = folder.join("lib/modules");
        let mut releases =
            fs::read_dir(&modules).with_context(|| format!("cannot list {}", modules.display()))?;
        let release = releases
            .next()
            .with_context(|| format!("no kernel's modules are in {}", modules.display()))??
            .file_name()
            .into_string()
            .map_err(|name| anyhow::anyhow!("the kernel release {name:?} is not UTF-8"))?;
        Ok(Self { folder, release })
    }
}

/// Downloads and unpacks Debian's kernel for clouds, or finds it in the cache. A cached kernel
/// stays until the cache is cleared, although Debian may have a newer one.
///
/// # Errors
///
/// If a package cannot be found, downloaded or unpacked.
pub fn kernel(cache: &Cache) -> Result<Kernel> {
    if let Some(folder) = cache.any("kernel") {
        return Kernel::in_folder(folder);
    }
    refresh_package_lists();
    let package = kernel_dependency(&output(Command::new("apt-cache").args([
        "depends",
        "--no-recommends",
        "--no-suggests",
        KERNEL_PACKAGE,
    ]))?)?;
    let folder = cache.entry("kernel", &Key::of([&package]), |folder| {
        let step = Step::begin(&format!("download and unpack {package}"));
        let download = tempfile::tempdir_in(folder)?;
        // As root, apt would like to download as a user of its own, who cannot write here.
        output(
            Command::new("apt-get")
                .args(["download", "-o", "APT::Sandbox::User=root", &package])
                .current_dir(download.path()),
        )?;
        let file = fs::read_dir(download.path())?
            .next()
            .with_context(|| format!("apt-get downloaded no file for {package}"))??;
        output(
            Command::new("dpkg-deb")
                .arg("-x")
                .arg(file.path())
                .arg(folder),
        )?;
        download.close()?;
        step.done();
        Ok(())
    })?;
    Kernel::in_folder(folder)
}

/// Package lists that are missing or old name packages that cannot be downloaded. A source that
/// fails may be one that is not needed, so this is no error yet.
fn refresh_package_lists() {
    let step = Step::begin("refresh the lists of packages");
    if let Err(error) = output(Command::new("apt-get").args(["update", "-q"])) {
        eprintln!("lab: {error:#}");
    }
    step.done();
}

/// The name of the kernel package in what `apt-cache depends` prints.
fn kernel_dependency(text: &str) -> Result<String> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .map(str::to_owned)
        .with_context(|| {
            format!("apt knows no kernel that {KERNEL_PACKAGE} depends on: is this Debian {SUITE}?")
        })
}

/// What the root disk is made from: its key in the cache.
#[must_use]
pub fn root_disk_key(kernel: &Kernel) -> Key {
    let mut inputs = vec!["1".to_owned(), SUITE.to_owned(), kernel.release.clone()];
    inputs.extend(
        PACKAGES
            .iter()
            .chain(&EXCLUDED)
            .map(|&text| text.to_owned()),
    );
    Key::of(inputs)
}

/// Makes the root disk, an ext4 image, or finds it in the cache.
///
/// # Errors
///
/// If the packages cannot be fetched or the image cannot be made.
pub fn root_disk(cache: &Cache, kernel: &Kernel) -> Result<PathBuf> {
    let folder = cache.entry("root", &root_disk_key(kernel), |folder| {
        ensure!(
            rustix::process::geteuid().is_root(),
            "making the lab's root file system needs root"
        );
        let tree = folder.join("tree");
        bootstrap(&tree)?;
        let step = Step::begin("make the lab's root disk");
        install_modules(kernel, &tree)?;
        make_disk(&tree, &folder.join("root.img"))?;
        fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))?;
        step.done();
        Ok(())
    })?;
    Ok(folder.join("root.img"))
}

fn bootstrap(tree: &Path) -> Result<()> {
    let step = Step::begin("install Debian for the lab");
    let mut command = Command::new("mmdebstrap");
    command.args(["--variant=essential", "--quiet"]);
    command.arg(format!("--include={}", PACKAGES.join(",")));
    for path in EXCLUDED {
        command.arg(format!("--dpkgopt=path-exclude={path}"));
    }
    command.arg(SUITE).arg(tree);
    output(command.args(sources()?))?;
    step.done();
    Ok(())
}

/// This machine's sources of the lab's Debian release, in the form of lines for apt.
///
/// # Errors
///
/// If apt knows no source of that release.
pub fn sources() -> Result<Vec<String>> {
    let targets = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(ORIGIN)|$(CODENAME)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)",
        "Created-By: Packages",
    ]))?;
    let sources = source_lines(&targets);
    if sources.is_empty() {
        bail!("apt knows no source of Debian {SUITE} here: is this Debian {SUITE}?");
    }
    Ok(sources)
}

/// Debian's own sources of the release, its updates and its security fixes; nothing of others.
fn source_lines(targets: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for target in targets.lines() {
        if let [origin, codename, address, release, component] =
            target.split('|').collect::<Vec<_>>()[..]
        {
            let wanted = origin == "Debian"
                && component == "main"
                && codename.split('-').next() == Some(SUITE)
                && !codename.ends_with("-backports");
            let line = format!("deb {address} {release} {component}");
            if wanted && !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    lines
}

/// Lets `modprobe` in the lab find every module of its kernel.
fn install_modules(kernel: &Kernel, tree: &Path) -> Result<()> {
    let target = tree.join("usr/lib/modules");
    fs::create_dir_all(&target)?;
    output(
        Command::new("cp")
            .arg("-a")
            .arg(kernel.modules())
            .arg(&target),
    )?;
    output(
        Command::new("chroot")
            .arg(tree)
            .args(["depmod", kernel.release()]),
    )?;
    Ok(())
}

fn make_disk(tree: &Path, disk: &Path) -> Result<()> {
    let used = output(Command::new("du").args(["-s", "--block-size=1"]).arg(tree))?;
    let used: u64 = used
        .split_whitespace()
        .next()
        .and_then(|bytes| bytes.parse().ok())
        .with_context(|| format!("du printed no size but {used:?}"))?;
    let size = used.saturating_add(used / 10).saturating_add(DISK_MARGIN);
    fs::File::create(disk)
        .and_then(|file| file.set_len(size))
        .with_context(|| format!("cannot create {}", disk.display()))?;
    output(
        Command::new("mkfs.ext4")
            // It is only ever mounted read-only: no journal, nothing reserved, nothing left for later.
            .args([
                "-q",
                "-F",
                "-O",
                "^has_journal",
                "-m",
                "0",
                "-E",
                "lazy_itable_init=0",
            ])
            .arg("-d")
            .arg(tree)
            .arg(disk),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_package_is_found_among_dependencies() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-1-cloud-amd64\n";

        assert_eq!(
            kernel_dependency(text).unwrap(),
            "linux-image-6.1.0-1-cloud-amd64"
        );
    }

    #[test]
    fn sources_are_debians_own_of_the_release() {
        let targets = "Debian|bookworm|http://a/debian/|bookworm|main\n\
                       Debian|bookworm|http://a/debian/|bookworm|main\n\
                       Debian|bookworm|http://a/debian/|bookworm|contrib\n\
                       Debian|bookworm-security|http://a/security/|bookworm-security|main\n\
                       Debian Backports|bookworm-backports|http://a/debian/|bookworm-backports|main\n\
                       Debian|trixie|http://a/debian/|trixie|main\n\
                       Docker|bookworm|http://b/|bookworm|main\n";

        assert_eq!(
            source_lines(targets),
            [
                "deb http://a/debian/ bookworm main",
                "deb http://a/security/ bookworm-security main"
            ]
        );
    }
}
