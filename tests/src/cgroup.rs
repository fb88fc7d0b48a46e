// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A control group of a test's own: it holds every process that a run started, whoever its parent
//! is by now, so that what is left over can be counted.

use std::fs;
use std::path::{Path, PathBuf};

/// A control group, removed when dropped.
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes a group called `name` in the first hierarchy that takes processes.
    pub fn new(name: &str) -> Self {
        let hierarchy = ["", "unified", "pids"]
            .map(|directory| Path::new("/sys/fs/cgroup").join(directory))
            .into_iter()
            .find(|directory| directory.join("cgroup.procs").exists())
            .expect("the host mounts control groups");
        let path = hierarchy.join(name);
        fs::create_dir(&path).expect("root may make control groups");
        Self(path)
    }

    /// The file to which a process writes to join.
    pub fn procs(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }

    /// The processes in the group.
    pub fn processes(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.procs()).expect("the group exists");
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // It fails only if processes are left, which the test has reported.
        let _ = fs::remove_dir(&self.0);
    }
}
