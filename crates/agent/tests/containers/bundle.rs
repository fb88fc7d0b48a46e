// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A bundle to make a container of, and the container made of it.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use coracle_agent::container::stdio::HostStreams;
use coracle_agent::container::{Containers, End, ProcessId};
use coracle_agent_api::AgentError;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::machine::Machine;

const APPLETS: [&str; 21] = [
    "cat", "chmod", "dd", "echo", "hostname", "id", "ls", "mknod", "mkdir", "nohup", "ps", "pwd",
    "readlink", "setsid", "sh", "sleep", "stty", "test", "touch", "true", "tty",
];

/// A root file system, volumes and a spec.
pub struct Bundle {
    directory: TempDir,
    pub spec: Value,
}

/// What a container did.
#[derive(Debug)]
pub struct Outcome {
    pub stdout: String,
    pub stderr: String,
    pub end: End,
}

/// A container at its start gate, with the host's ends of its streams.
pub struct Running {
    pub containers: Containers,
    pub id: String,
    pub pid: u32,
    stdin: Option<UnixStream>,
    stdout: JoinHandle<String>,
    stderr: JoinHandle<String>,
}

impl Bundle {
    /// A bundle that runs `script` as engines run their containers by default.
    pub fn new(machine: &Machine, script: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let rootfs = directory.path().join("rootfs");
        fs::create_dir_all(rootfs.join("bin")).unwrap();
        fs::create_dir_all(directory.path().join("volumes/0")).unwrap();
        fs::copy(machine.busybox, rootfs.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        // Temporary directories are root's alone, and a container's user may not be root.
        for path in [&rootfs, directory.path()] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let spec = json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {
                "args": ["sh", "-c", script],
                "env": ["PATH=/bin"],
                "cwd": "/",
                "user": {"uid": 0, "gid": 0},
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
                {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            ],
            "hostname": "vessel",
            "linux": {
                "namespaces": [
                    {"type": "mount"}, {"type": "pid"}, {"type": "uts"}, {"type": "ipc"},
                    {"type": "cgroup"}, {"type": "network"},
                ],
            },
        });
        Self { directory, spec }
    }

    /// Sets the value at `pointer`.
    pub fn with(mut self, pointer: &str, value: Value) -> Self {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        self.spec.pointer_mut(parent).unwrap()[name] = value;
        self
    }

    /// Adds a mount after the others.
    pub fn with_mount(mut self, mount: Value) -> Self {
        self.spec["mounts"].as_array_mut().unwrap().push(mount);
        self
    }

    /// A path in the bundle.
    pub fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    /// Makes the container up to its start gate.
    pub fn create(&self, machine: &Machine) -> Result<Running, AgentError> {
        let (stdin, agent_stdin) = UnixStream::pair().unwrap();
        let (stdout, agent_stdout) = UnixStream::pair().unwrap();
        let (stderr, agent_stderr) = UnixStream::pair().unwrap();
        let terminal = self.spec["process"]["terminal"] == true;
        let streams = HostStreams {
            stdin: Some(agent_stdin.into()),
            stdout: Some(agent_stdout.into()),
            stderr: (!terminal).then(|| agent_stderr.into()),
        };
        let (containers, id, pid) = self.create_with(machine, streams)?;
        Ok(Running {
            containers,
            id,
            pid,
            stdin: Some(stdin),
            stdout: read_in_background(stdout),
            stderr: read_in_background(stderr),
        })
    }

    /// Makes the container with these streams. Gives its PID too.
    pub fn create_with(
        &self,
        machine: &Machine,
        streams: HostStreams,
    ) -> Result<(Containers, String, u32), AgentError> {
        let id = id_of(self.directory.path());
        let bundle = self.directory.path().to_str().unwrap().to_owned();
        let containers = Containers::new(machine.reaper.clone(), machine.hierarchy.clone(), bundle);
        let spec = self.spec.to_string();
        let pid = containers.create(&id, spec.as_bytes(), || Ok(streams))?;
        Ok((containers, id, pid))
    }

    /// Runs the container to its end, with nothing to read.
    pub fn run(&self, machine: &Machine) -> Result<Outcome, AgentError> {
        let mut running = self.create(machine)?;
        running.write_stdin(b"");
        running.start()?;
        Ok(running.finish())
    }
}

impl Running {
    /// The container's first process.
    pub fn first(&self) -> ProcessId<'_> {
        ProcessId::first(&self.id)
    }

    pub fn start(&self) -> Result<(), AgentError> {
        self.containers.start(self.first())
    }

    /// Writes all that the container will ever read.
    pub fn write_stdin(&mut self, data: &[u8]) {
        let mut stdin = self.stdin.take().unwrap();
        stdin.write_all(data).unwrap();
        stdin.shutdown(Shutdown::Write).unwrap();
    }

    /// Waits for the container's end and deletes it.
    pub fn finish(self) -> Outcome {
        let end = self.containers.wait(self.first()).unwrap();
        self.containers.delete(self.first()).unwrap();
        Outcome {
            stdout: self.stdout.join().unwrap(),
            stderr: self.stderr.join().unwrap(),
            end,
        }
    }
}

/// An id that no other bundle of this run has.
pub fn id_of(directory: &Path) -> String {
    let name = directory.file_name().unwrap().to_str().unwrap();
    name.trim_start_matches('.').to_owned()
}

fn read_in_background(mut stream: UnixStream) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    })
}
