// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the cases need of the machine: a mount namespace to make a mess in, a cgroup, a reaper.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use coracle_agent::cgroup::Hierarchy;
use coracle_agent::reaper::Reaper;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

/// Where a static busybox is looked for.
const BUSYBOX: [&str; 2] = ["/usr/bin/busybox", "/bin/busybox"];

#[derive(Clone)]
pub struct Machine {
    pub reaper: Arc<Reaper>,
    pub hierarchy: Hierarchy,
    pub busybox: &'static Path,
    /// Disks with an ext4 file system, or what is missing for them.
    pub disks: Result<Disks, String>,
    cgroup: PathBuf,
    mount_point: PathBuf,
}

impl Machine {
    /// Prepares the machine, or says what it lacks.
    pub fn prepare() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("only root makes containers".to_owned());
        }
        let busybox = BUSYBOX
            .iter()
            .map(Path::new)
            .find(|path| path.exists())
            .ok_or("there is no busybox")?;
        let mount_point = enter_mount_namespace().map_err(|error| error.to_string())?;
        let cgroup = mount_point.join(format!("coracle-agent-test-{}", std::process::id()));
        let hierarchy = fs::create_dir(&cgroup)
            .and_then(|()| Hierarchy::set_up(&cgroup))
            .map_err(|error| format!("there is no cgroup v2: {error}"))?;
        // Before the reaper takes what is not its own.
        let disks = Disks::prepare();
        let reaper = Arc::new(Reaper::default());
        let running = Arc::clone(&reaper);
        thread::spawn(move || running.run());
        Ok(Self {
            reaper,
            hierarchy,
            busybox,
            disks,
            cgroup,
            mount_point,
        })
    }

    /// The cgroups of the containers that there are.
    pub fn cgroups(&self) -> Vec<String> {
        fs::read_dir(self.cgroup.join("containers"))
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_type().unwrap().is_dir())
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect()
    }

    /// Leaves nothing behind. Fails if the cases did, unless one of them failed and may have.
    pub fn leave(self, failed: bool) {
        if failed {
            self.hierarchy.kill_all().unwrap();
            for id in self.cgroups() {
                self.remove_when_empty(&id);
            }
        }
        if let Ok(disks) = &self.disks {
            disks.leave();
        }
        fs::remove_dir(self.cgroup.join("containers")).unwrap();
        fs::remove_dir(&self.cgroup).unwrap();
        rustix::mount::unmount(&self.mount_point, UnmountFlags::DETACH).unwrap();
        fs::remove_dir(&self.mount_point).unwrap();
    }

    fn remove_when_empty(&self, id: &str) {
        let cgroup = self.cgroup.join("containers").join(id);
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::remove_dir(&cgroup).is_err() {
            assert!(Instant::now() < deadline, "processes of {id} do not end");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Disks by their use: a file system is not mounted for writing while it is mounted for reading only, and cases run
/// beside each other.
#[derive(Clone)]
pub struct Disks {
    pub writable: Disk,
    pub read_only: Disk,
}

impl Disks {
    /// Makes them, in a `/dev/disk` that only this process sees.
    fn prepare() -> Result<Self, String> {
        let make_directory = || {
            fs::create_dir_all("/dev/disk")?;
            rustix::mount::mount("tmpfs", "/dev/disk", "tmpfs", MountFlags::empty(), None)?;
            fs::create_dir("/dev/disk/by-id")
        };
        make_directory().map_err(|error| error.to_string())?;
        let writable = Disk::prepare("data")?;
        let read_only = Disk::prepare("read-only").inspect_err(|_| writable.detach())?;
        Ok(Self {
            writable,
            read_only,
        })
    }

    fn leave(&self) {
        rustix::mount::unmount("/dev/disk", UnmountFlags::DETACH).unwrap();
        // The directory stays: with it, what another run of these tests has mounted there in its own namespace would go.
        for disk in [&self.writable, &self.read_only] {
            disk.detach();
        }
    }
}

/// A loop device in the place of a disk of the host's.
#[derive(Clone)]
pub struct Disk {
    /// Its link, as a spec names it.
    pub link: PathBuf,
    device: String,
}

impl Disk {
    fn prepare(name: &str) -> Result<Self, String> {
        let run = |command: &str| -> Result<String, String> {
            let mut words = command.split(' ');
            let output = Command::new(words.next().unwrap())
                .args(words)
                .output()
                .map_err(|error| format!("`{command}` fails: {error}"))?;
            match output.status.success() {
                true => Ok(String::from_utf8(output.stdout).unwrap()),
                false => Err(format!("`{command}` fails")),
            }
        };
        let image = std::env::temp_dir().join(format!("coracle-disk-{}", std::process::id()));
        let path = image.display();
        let device = fs::File::create(&image)
            .and_then(|file| file.set_len(8 << 20))
            .map_err(|error| error.to_string())
            .and_then(|()| run(&format!("mkfs.ext4 -q {path}")))
            .and_then(|_| run(&format!("losetup --show -f {path}")));
        // The device keeps it.
        let _ = fs::remove_file(&image);
        let device = device?.trim_end().to_owned();
        let link = PathBuf::from(format!("/dev/disk/by-id/virtio-{name}"));
        std::os::unix::fs::symlink(&device, &link).map_err(|error| error.to_string())?;
        Ok(Self { link, device })
    }

    /// Waiting for it is the reaper's.
    fn detach(&self) {
        let _ = Command::new("losetup").args(["-d", &self.device]).spawn();
    }
}

/// Makes all mounts from here on invisible to others, and mounts the unified hierarchy.
fn enter_mount_namespace() -> std::io::Result<PathBuf> {
    let mount_point = std::env::temp_dir().join(format!("coracle-cgroup-{}", std::process::id()));
    fs::create_dir(&mount_point)?;
    // SAFETY: this process has one thread so far, and no descriptors that a new mount namespace would invalidate.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS)? };
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    rustix::mount::mount_change("/", private)?;
    rustix::mount::mount(
        "cgroup2",
        &mount_point,
        "cgroup2",
        MountFlags::empty(),
        None,
    )?;
    Ok(mount_point)
}
