// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One cgroup per container, in the guest's unified hierarchy.
//!
//! ```text
//! /sys/fs/cgroup             the agent
//! └── containers             nothing but containers
//!     └── ID                 a container, with its limits
//! ```

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coracle_agent_api::{AgentError, ErrorKind};
use rustix::fs::{CWD, Mode, OFlags};

use crate::spec::Resources;

mod device_filter;
mod limits;
mod statistics;

/// Where the guest has the hierarchy.
pub const MOUNT_POINT: &str = "/sys/fs/cgroup";

/// The cgroup in which those of all containers are.
const CONTAINERS: &str = "containers";

/// How long the kernel may take to let go of processes that were killed.
const REMOVAL_DEADLINE: Duration = Duration::from_secs(10);

/// What is handed down to the cgroups of containers, where the kernel has it.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"];

/// The cgroup of all containers.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    containers: PathBuf,
}

/// The cgroup of one container. It outlives this value, until [`Cgroup::remove`].
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: OwnedFd,
}

impl Hierarchy {
    /// Makes the cgroup of all containers in the hierarchy at `mount_point`.
    ///
    /// # Errors
    ///
    /// There is no unified hierarchy at `mount_point`.
    pub fn set_up(mount_point: &Path) -> io::Result<Self> {
        let containers = mount_point.join(CONTAINERS);
        hand_down(mount_point)?;
        match fs::create_dir(&containers) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result?,
        }
        hand_down(&containers)?;
        Ok(Self { containers })
    }

    /// Makes the cgroup of the container `id` and sets its limits.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Limit`] names the limit that cannot be set; nothing is left behind.
    pub fn create(&self, id: &str, resources: &Resources) -> Result<Cgroup, AgentError> {
        let path = self.containers.join(id);
        let make = || {
            fs::create_dir(&path)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            Ok(rustix::fs::openat(CWD, &path, flags, Mode::empty())?)
        };
        let directory = make().map_err(|error: io::Error| {
            AgentError::new(
                ErrorKind::Internal,
                format!("cannot make the cgroup {}: {error}", path.display()),
            )
        })?;
        let cgroup = Cgroup { path, directory };
        if let Err(error) = cgroup.limit(resources) {
            // The failure to tell is the first one.
            let _ = cgroup.remove();
            return Err(error);
        }
        Ok(cgroup)
    }

    /// Kills every process of every container.
    ///
    /// # Errors
    ///
    /// The kernel is older than 5.14.
    pub fn kill_all(&self) -> io::Result<()> {
        write(&self.containers.join("cgroup.kill"), "1")
    }
}

impl Cgroup {
    /// Its directory, for a process to be born into.
    #[must_use]
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// The processes in it, and in cgroups that the container made.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn processes(&self) -> io::Result<Vec<i32>> {
        let mut processes = read_processes(&self.path)?;
        let mut pending = cgroups_in(&self.path);
        while let Some(path) = pending.pop() {
            // It may have gone in the meantime, or have nothing but threads.
            processes.extend(read_processes(&path).unwrap_or_default());
            pending.extend(cgroups_in(&path));
        }
        Ok(processes)
    }

    /// Kills every process in it.
    ///
    /// # Errors
    ///
    /// The kernel is older than 5.14, or it is gone.
    pub fn kill(&self) -> io::Result<()> {
        write(&self.path.join("cgroup.kill"), "1")
    }

    /// Whether the kernel killed a process in it for want of memory.
    #[must_use]
    pub fn oom_killed(&self) -> bool {
        fs::read_to_string(self.path.join("memory.events"))
            .is_ok_and(|events| count_of(&events, "oom_kill") > 0)
    }

    /// Kills what is left in it, with cgroups that the container made, and removes it.
    ///
    /// # Errors
    ///
    /// A process does not end.
    pub fn remove(&self) -> io::Result<()> {
        let deadline = Instant::now() + REMOVAL_DEADLINE;
        loop {
            match remove_tree(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    if Instant::now() > deadline {
                        return Err(error);
                    }
                    // Killed already, most likely, and on its way out.
                    let _ = self.kill();
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                result => return result,
            }
        }
    }

    fn limit(&self, resources: &Resources) -> Result<(), AgentError> {
        for setting in limits::settings(resources)? {
            write(&self.path.join(&setting.file), &setting.value).map_err(|error| {
                AgentError::new(
                    ErrorKind::Limit,
                    format!(
                        "cannot set {} to `{}`: {error}",
                        setting.file, setting.value
                    ),
                )
            })?;
        }
        device_filter::attach(&self.path, &resources.devices).map_err(|error| {
            AgentError::new(
                ErrorKind::Limit,
                format!("cannot limit the devices that the container may use: {error}"),
            )
        })
    }
}

/// Lets cgroups below `cgroup` use its controllers.
fn hand_down(cgroup: &Path) -> io::Result<()> {
    let available = fs::read_to_string(cgroup.join("cgroup.controllers"))?;
    for controller in CONTROLLERS {
        if available.split_whitespace().any(|name| name == controller) {
            let control = cgroup.join("cgroup.subtree_control");
            write(&control, &format!("+{controller}"))?;
        }
    }
    Ok(())
}

/// Writes to a file that the kernel made. It is not to be made here: a kernel without the controller would refuse that, and
/// the refusal would speak of permissions.
fn write(file: &Path, value: &str) -> io::Result<()> {
    fs::File::options()
        .write(true)
        .open(file)?
        .write_all(value.as_bytes())
}

fn read_processes(cgroup: &Path) -> io::Result<Vec<i32>> {
    let list = fs::read_to_string(cgroup.join("cgroup.procs"))?;
    Ok(list.lines().filter_map(|line| line.parse().ok()).collect())
}

/// The cgroups in a cgroup.
fn cgroups_in(cgroup: &Path) -> Vec<PathBuf> {
    fs::read_dir(cgroup)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Removes a cgroup and those below it; files in them go with them.
fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// The number after `name` in a file of a name and a number a line.
fn count_of(file: &str, name: &str) -> u64 {
    file.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_is_counted_by_its_whole_name() {
        let events = "low 0\noom 1\noom_kill 3\noom_group_kill 9\n";

        assert_eq!(count_of(events, "oom_kill"), 3);
        assert_eq!(count_of(events, "oom_k"), 0);
    }

    #[test]
    fn directory_that_is_no_cgroup_is_refused() {
        let directory = tempfile::tempdir().unwrap();

        let error = Hierarchy::set_up(directory.path()).unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
