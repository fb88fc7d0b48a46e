// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From the initramfs to a KVM host that waits for a command.
//!
//! The root file system is an overlay of the read-only disk and memory, so a snapshot of the lab's
//! memory is a snapshot of the whole lab.

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use coracle_lab::protocol::{PAYLOAD_DIRECTORY, PORT_NAME, RESULTS_DIRECTORY};
use rustix::mount::{MountFlags, mount, mount_move};

/// How long a device may take to appear.
const DEVICE_DEADLINE: Duration = Duration::from_secs(20);

/// File systems of the initramfs, before the root's.
const EARLY: [Mount; 3] = [
    Mount::new("proc", "/proc", c""),
    Mount::new("sysfs", "/sys", c""),
    Mount::new("devtmpfs", "/dev", c"mode=755"),
];

/// File systems of the lab. Directories that tests fill are memory: the overlay could not be the
/// upper layer of another overlay, and counted runs must not wait for a disk.
const LATE: [Mount; 12] = [
    Mount::new("devpts", "/dev/pts", c"mode=620,ptmxmode=666,gid=5"),
    Mount::new("tmpfs", "/dev/shm", c"mode=1777"),
    Mount::new("mqueue", "/dev/mqueue", c""),
    Mount::new("tmpfs", "/run", c"mode=755,size=90%"),
    Mount::new("tmpfs", "/tmp", c"mode=1777,size=90%"),
    Mount::new("tmpfs", "/var/tmp", c"mode=1777,size=90%"),
    Mount::new("tmpfs", "/var/lib/containerd", c"mode=711,size=90%"),
    Mount::new("tmpfs", "/var/lib/coracle", c"mode=711,size=90%"),
    Mount::new("tmpfs", PAYLOAD_DIRECTORY, c"mode=755,size=90%"),
    Mount::new("tmpfs", RESULTS_DIRECTORY, c"mode=755,size=90%"),
    // Without favordynmods, KVM_CREATE_VM waits about 10 ms for a thread's move between cgroups.
    Mount::new("cgroup2", "/sys/fs/cgroup", c"favordynmods,nsdelegate"),
    Mount::new("debugfs", "/sys/kernel/debug", c""),
];

/// What udev would link.
const LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// Settings of the lab's kernel.
const SETTINGS: [(&str, &str); 6] = [
    // A program gets huge pages where it asks for them, in anonymous and in shared memory.
    ("/sys/kernel/mm/transparent_hugepage/enabled", "madvise"),
    (
        "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
        "advise",
    ),
    (
        "/sys/fs/cgroup/cgroup.subtree_control",
        "+cpu +cpuset +io +memory +pids",
    ),
    ("/proc/sys/kernel/hostname", "lab"),
    ("/proc/sys/kernel/printk", "3"),
    ("/proc/sys/net/ipv4/ip_forward", "1"),
];

struct Mount {
    kind: &'static str,
    target: &'static str,
    data: &'static CStr,
}

impl Mount {
    const fn new(kind: &'static str, target: &'static str, data: &'static CStr) -> Self {
        Self { kind, target, data }
    }

    fn apply(&self) -> Result<()> {
        fs::create_dir_all(self.target)
            .with_context(|| format!("cannot create {}", self.target))?;
        mount(
            self.kind,
            self.target,
            self.kind,
            MountFlags::empty(),
            self.data,
        )
        .with_context(|| format!("cannot mount {} on {}", self.kind, self.target))
    }
}

/// Sets the lab up and opens the port on which commands come.
pub fn set_up() -> Result<File> {
    for early in &EARLY {
        early.apply()?;
    }
    load_modules()?;
    let program = fs::read("/init").context("cannot read /init")?;
    enter_root(&wait_for(Path::new("/dev/vda"))?)?;
    for late in &LATE {
        late.apply()?;
    }
    for (link, target) in LINKS {
        std::os::unix::fs::symlink(target, link)
            .with_context(|| format!("cannot link {link} to {target}"))?;
    }
    for (file, value) in SETTINGS {
        fs::write(file, value).with_context(|| format!("cannot write {value:?} to {file}"))?;
    }
    install(&program)?;
    loopback_up()?;
    open_port()
}

/// Loads the modules that the initramfs lists, in its order.
fn load_modules() -> Result<()> {
    let order = Path::new("/").join(coracle_guest::initramfs::ORDER);
    let list =
        fs::read_to_string(&order).with_context(|| format!("cannot read {}", order.display()))?;
    for name in list.lines() {
        let path = order.with_file_name(name);
        let module =
            File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        rustix::system::finit_module(&module, c"", 0)
            .with_context(|| format!("cannot load {}", path.display()))?;
    }
    Ok(())
}

fn wait_for(device: &Path) -> Result<PathBuf> {
    let deadline = Instant::now() + DEVICE_DEADLINE;
    while !device.exists() {
        if Instant::now() > deadline {
            bail!("{} did not appear in {DEVICE_DEADLINE:?}", device.display());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(device.to_owned())
}

fn enter_root(disk: &Path) -> Result<()> {
    let lower = Mount::new("tmpfs", "/memory", c"mode=755,size=90%");
    lower.apply()?;
    for directory in ["/disk", "/memory/upper", "/memory/work", "/root"] {
        fs::create_dir_all(directory)?;
    }
    mount(disk, "/disk", "ext4", MountFlags::RDONLY, c"")
        .with_context(|| format!("cannot mount {}", disk.display()))?;
    let layers = c"lowerdir=/disk,upperdir=/memory/upper,workdir=/memory/work";
    mount("overlay", "/root", "overlay", MountFlags::empty(), layers)
        .context("cannot mount the root file system's overlay")?;
    for early in &EARLY {
        let target = format!("/root{}", early.target);
        fs::create_dir_all(&target)?;
        mount_move(early.target, &target)
            .with_context(|| format!("cannot move {} to {target}", early.target))?;
    }
    std::env::set_current_dir("/root")?;
    mount_move(".", "/").context("cannot make the overlay the root")?;
    rustix::process::chroot(".").context("cannot change root")?;
    std::env::set_current_dir("/").context("cannot enter the root")
}

fn install(program: &[u8]) -> Result<()> {
    let path = "/usr/local/bin/labtime";
    fs::write(path, program).with_context(|| format!("cannot write {path}"))?;
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    fs::write("/etc/hosts", "127.0.0.1 localhost lab\n::1 localhost\n")?;
    Ok(())
}

fn loopback_up() -> Result<()> {
    let status = std::process::Command::new("/sbin/ip")
        .args(["link", "set", "lo", "up"])
        .status()
        .context("cannot run ip")?;
    if !status.success() {
        bail!("ip link set lo up ended with {status}");
    }
    Ok(())
}

/// Opens the virtio-serial port by its name; there is no udev to make links.
fn open_port() -> Result<File> {
    let directory = Path::new("/sys/class/virtio-ports");
    let deadline = Instant::now() + DEVICE_DEADLINE;
    loop {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if name.trim() == PORT_NAME {
                let device = Path::new("/dev").join(entry.file_name());
                return OpenOptions::new()
                    .read(true)
                    .write(true)
                    .custom_flags(libc::O_NONBLOCK)
                    .open(&device)
                    .with_context(|| format!("cannot open {}", device.display()));
            }
        }
        if Instant::now() > deadline {
            bail!("the virtio-serial port {PORT_NAME} did not appear in {DEVICE_DEADLINE:?}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
