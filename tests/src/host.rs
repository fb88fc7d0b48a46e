// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A host of a test's own: directories for `coracle`, and what a run may not leave in them.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::cgroup::Cgroup;
use crate::container::Container;
use crate::path_from_environment;
use crate::running::{Finished, Running};
use crate::terminal::{Terminal, on_terminal};

/// How long what a run made may take to vanish after it.
const VANISHING: Duration = Duration::from_secs(10);

/// How long a container may take to come to be what it is awaited to be.
const STATUS: Duration = Duration::from_secs(30);

static HOSTS: AtomicU32 = AtomicU32::new(0);

/// Images that were unpacked once for all hosts of this process that ask for it.
static UNPACKED: LazyLock<PathBuf> = LazyLock::new(|| {
    extern "C" fn remove() {
        // What cannot be removed is the temporary directory's, and in nobody's way.
        let _ = fs::remove_dir_all(&*UNPACKED);
    }
    // SAFETY: the function is called once, as the process exits, and does not unwind.
    unsafe { libc::atexit(remove) };
    let directory = temporary_directory().keep();
    fs::create_dir(directory.join("images")).expect("the temporary directory takes files");
    directory
});

/// Directories and a control group for the runs of one test.
pub struct Host {
    directory: TempDir,
    cgroup: Cgroup,
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Host {
    /// A host on which nothing has run.
    pub fn new() -> Self {
        let name = format!(
            "coracle-test-{}-{}",
            std::process::id(),
            HOSTS.fetch_add(1, Ordering::Relaxed)
        );
        Self {
            directory: temporary_directory(),
            cgroup: Cgroup::new(&name),
        }
    }

    /// A host whose unpacked images are those of other tests, too: an image that an earlier test ran is there.
    pub fn with_shared_images() -> Self {
        let host = Self::new();
        let root = host.directory.path().join("root");
        fs::create_dir(&root).expect("the temporary directory takes files");
        symlink(UNPACKED.join("images"), root.join("images"))
            .expect("the temporary directory takes links");
        host
    }

    /// A directory for the test's own files.
    pub fn files(&self) -> PathBuf {
        let files = self.directory.path().join("files");
        fs::create_dir_all(&files).expect("the temporary directory takes files");
        files
    }

    /// A file among the test's own.
    pub fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let file = self.files().join(name);
        fs::write(&file, contents).expect("the temporary directory takes files");
        file
    }

    /// An empty directory among the test's own files.
    pub fn folder(&self, name: &str) -> PathBuf {
        let folder = self.files().join(name);
        fs::create_dir_all(&folder).expect("the temporary directory takes files");
        folder
    }

    /// Where unpacked images are.
    pub fn images(&self) -> PathBuf {
        self.directory.path().join("root/images")
    }

    /// Where what outlives a run is kept.
    pub fn containers(&self) -> PathBuf {
        self.directory.path().join("root/containers")
    }

    /// A run of `image`: an [`Image`](crate::Image), or whatever else `coracle run` takes.
    pub fn container(&self, image: impl Display) -> Container<'_> {
        Container::of_image(self, image)
    }

    /// A run on a tree of files.
    pub fn container_on(&self, tree: &Path) -> Container<'_> {
        Container::of_rootfs(self, tree)
    }

    /// A command of `coracle` on this host, to be changed before it is started.
    pub fn coracle(&self, words: &[impl AsRef<OsStr>]) -> Command {
        self.coracle_under(Vec::new(), words.iter().map(OsString::from))
    }

    /// The same, started by the program of the words in `under`.
    pub(crate) fn coracle_under(
        &self,
        under: Vec<OsString>,
        words: impl Iterator<Item = OsString>,
    ) -> Command {
        let coracle = path_from_environment("CORACLE_BIN").into_os_string();
        let mut line = under.into_iter().chain([coracle]).chain(words);
        let mut command = Command::new(line.next().unwrap_or_default());
        command
            .env("CORACLE_ROOT", self.directory.path().join("root"))
            .env("CORACLE_STATE", self.directory.path().join("state"))
            .env("CORACLE_GUEST", path_from_environment("CORACLE_GUEST"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .args(line);
        command
    }

    /// Starts a command of [`Self::coracle`] in the group of this host.
    pub fn start(&self, command: Command) -> Running {
        Running::start(command, &self.cgroup.procs())
    }

    /// The same, with `bytes` on its standard input, which is a pipe.
    pub fn start_with_input(&self, mut command: Command, bytes: Vec<u8>) -> Running {
        command.stdin(Stdio::piped());
        let mut running = self.start(command);
        running.write(bytes);
        running
    }

    /// Runs `coracle` with `words` and nothing on its standard input, to its end.
    pub fn run(&self, words: &[impl AsRef<OsStr>]) -> Finished {
        self.start(self.coracle(words)).finish()
    }

    /// Runs `coracle` with `words` on a terminal.
    pub fn start_on_terminal(&self, words: &[impl AsRef<OsStr>], terminal: &Terminal) -> Running {
        let mut command = self.coracle(words);
        on_terminal(&mut command, &terminal.far_end());
        self.start(command)
    }

    /// Waits until `coracle ps --all` shows `words` of the container `name`.
    ///
    /// # Panics
    ///
    /// Panics where it does not come to that.
    pub fn await_status(&self, name: &str, words: &str) {
        let deadline = Instant::now() + STATUS;
        loop {
            let list = self.run(&["ps", "--all"]).expect(0).text();
            let line = list.lines().find(|line| line.contains(name));
            if line.is_some_and(|line| line.contains(words)) {
                return;
            }
            assert!(Instant::now() < deadline, "{name} is not {words}: {list}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Where the process that runs a container is asked, of the only one that there is.
    pub fn control(&self) -> PathBuf {
        let state = self.directory.path().join("state");
        let mut sockets = fs::read_dir(state)
            .expect("there is a state directory")
            .filter_map(|entry| Some(entry.ok()?.path().join("control")))
            .filter(|socket| socket.exists());
        let socket = sockets.next().expect("a container is run");
        assert_eq!(sockets.next(), None, "there is more than one");
        socket
    }

    /// Runs `coracle`, started by a program whose words end with its own.
    pub fn run_under<const N: usize>(&self, program: [&str; N], words: &[&str]) -> Finished {
        let command = self.coracle_under(
            program.map(OsString::from).into(),
            words.iter().map(OsString::from),
        );
        self.start(command).finish()
    }

    /// Processes that runs on this host started and that live.
    pub fn processes(&self) -> Vec<(i32, String)> {
        self.cgroup
            .processes()
            .into_iter()
            .filter_map(|process| {
                Some((
                    process,
                    fs::read_to_string(format!("/proc/{process}/cmdline")).ok()?,
                ))
            })
            .collect()
    }

    /// The process that lives `role`, once there is one.
    pub fn process_of(&self, role: &str) -> i32 {
        let deadline = Instant::now() + VANISHING;
        loop {
            let found = self
                .processes()
                .into_iter()
                .find(|(_, words)| words.split('\0').any(|word| word == role));
            match found {
                Some((process, _)) => return process,
                None if Instant::now() > deadline => panic!("no process lives the role {role}"),
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Is turned off without a word to anybody: all processes end at once, so that none clears up after another, and what
    /// is only kept while a host runs is gone.
    pub fn crash(&self) {
        let mut stopped = BTreeSet::new();
        while let Some(process) = self
            .cgroup
            .processes()
            .into_iter()
            .find(|process| !stopped.contains(process))
        {
            signal(process, libc::SIGSTOP);
            stopped.insert(process);
        }
        for process in stopped {
            signal(process, libc::SIGKILL);
        }
        let deadline = Instant::now() + VANISHING;
        while !self.cgroup.processes().is_empty() {
            assert!(Instant::now() < deadline, "a killed process ends");
            thread::sleep(Duration::from_millis(20));
        }
        fs::remove_dir_all(self.directory.path().join("state"))
            .expect("there is a state directory");
    }

    /// Waits until nothing of any run is left: no process, mount, or file.
    ///
    /// # Panics
    ///
    /// Panics, naming what is left, where something stays.
    pub fn assert_clean(&self) {
        let deadline = Instant::now() + VANISHING;
        loop {
            let left = self.leftovers();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind: {left:#?}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn leftovers(&self) -> Vec<String> {
        let root = self.directory.path();
        let processes = self
            .processes()
            .into_iter()
            .map(|(process, words)| format!("process {process}: {words}"));
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
        let ours = root.display().to_string();
        let mounts = mounts
            .lines()
            .filter(|line| line.contains(&ours))
            .map(|line| format!("mount {line}"));
        let files = ["root/containers", "state"]
            .into_iter()
            .flat_map(|place| entries(&root.join(place)));
        // In images that are shared, another test's may be in the making.
        let own = !root.join("root/images").is_symlink();
        let partial = own.then(|| entries(&root.join("root/images/tmp")));
        processes
            .chain(mounts)
            .chain(files)
            .chain(partial.into_iter().flatten())
            .collect()
    }
}

/// Sends a signal to a process of a host's group, which may have ended meanwhile.
fn signal(process: i32, signal: i32) {
    // SAFETY: sends a signal, to a process that was just seen in the group.
    unsafe { libc::kill(process, signal) };
}

fn entries(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| format!("file {}", entry.path().display()))
        .collect()
}

fn temporary_directory() -> TempDir {
    TempDir::with_prefix("coracle-test-").expect("the temporary directory takes files")
}
