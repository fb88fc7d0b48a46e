// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The reaper waits for every child of its process, and so has a process of its own: one test, no others beside it.

use std::io;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use coracle_agent::reaper::{Child, Reaper};
use rustix::process::{Pid, PidfdFlags, Signal};

const DEADLINE: Duration = Duration::from_secs(10);

fn start(script: &str) -> io::Result<(i32, OwnedFd)> {
    let child = Command::new("/bin/sh").args(["-c", script]).spawn()?;
    let pid = i32::try_from(child.id()).unwrap();
    let pidfd = rustix::process::pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty())?;
    Ok((pid, pidfd))
}

fn spawn(reaper: &Reaper, script: &str) -> Arc<Child> {
    reaper.spawn(|| start(script)).unwrap()
}

fn status(child: &Child) -> u32 {
    child.wait_timeout(DEADLINE).expect("the child ends").status
}

#[test]
fn every_child_is_waited_for_once_and_by_its_own() {
    // Arrange: orphans become ours, as a PID 1's do.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let reaper = Arc::new(Reaper::default());
    let running = Arc::clone(&reaper);
    thread::spawn(move || running.run());

    // Many that end at once, some before anybody waits.
    let children: Vec<_> = (0..50)
        .map(|number| (number, spawn(&reaper, &format!("exit {number}"))))
        .collect();
    for (number, child) in &children {
        assert_eq!(status(child), *number);
        // It may be asked again.
        assert_eq!(status(child), *number);
    }

    // A signal's number shows, and a signal to one that has ended is no failure.
    let killed = spawn(&reaper, "exec sleep 1000");
    killed.signal(Signal::TERM).unwrap();
    assert_eq!(status(&killed), 128 + 15);
    killed.signal(Signal::TERM).unwrap();

    // One that runs on is not reported.
    let long = spawn(&reaper, "exec sleep 1000");
    assert_eq!(long.wait_timeout(Duration::from_millis(20)), None);
    long.signal(Signal::KILL).unwrap();
    assert_eq!(status(&long), 128 + 9);

    // An orphan is taken, while nobody asks for it and another child is waited for.
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("orphan");
    let script = format!("sleep 0.05 & echo $! > {}; exit 4", file.display());
    let parent = spawn(&reaper, &script);
    let other = spawn(&reaper, "sleep 0.2; exit 5");
    assert_eq!(status(&parent), 4);
    assert_eq!(status(&other), 5);
    let orphan: i32 = std::fs::read_to_string(file)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let orphan = Pid::from_raw(orphan).unwrap();
    let deadline = Instant::now() + DEADLINE;
    while rustix::process::test_kill_process(orphan).is_ok() {
        assert!(Instant::now() < deadline, "the orphan is still there");
        thread::sleep(Duration::from_millis(1));
    }
}
