// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that floods its host: memory stays bounded, and other runs go on.

use std::fs;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use coracle_tests::{Host, Image};
use rstest::rstest;

use crate::setup::{attacked, tree};

/// The most memory of its own that any process of a run may have, in KiB: the guest's is not among it.
const MEMORY: u64 = 16 << 10;
/// The most of the console that may be kept, in KiB.
const CONSOLE: u64 = 1 << 10;
/// The most descriptors that any process may have: all files of a guest of 96 MiB, and a few of its own.
const DESCRIPTORS: u64 = 12_288 + 100;
/// Pause between two looks at them.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a flood may take to begin.
const START: Duration = Duration::from_secs(60);
/// How long a flood goes on after the other run.
const FLOOD: Duration = Duration::from_secs(2);

#[rstest]
#[case::connections("flood of connections", |most: &Most| most.console > 3)]
#[case::console("flood of the console", |most: &Most| most.console > 500)]
#[case::serial_port("flood of the serial port", |most: &Most| most.console > 30)]
fn flooded_host_keeps_its_memory_and_other_runs_go_on(
    #[case] attack: &str,
    #[case] is_under_way: fn(&Most) -> bool,
) {
    let host = Host::with_shared_images();
    let run = attacked(&host, attack).start();
    let vmm = host.process_of("role:vmm");
    let watch = Watch::start(vec![run.id(), vmm, host.process_of("role:fs")]);
    let (mut most, started) = (Most::default(), Instant::now());
    while !is_under_way(&most) {
        assert!(started.elapsed() < START, "there is no flood: {most:?}");
        thread::sleep(PAUSE);
        most.look(vmm);
    }

    let other = host
        .container(Image::BUSYBOX)
        .command(["echo", "not disturbed"])
        .expect(0);
    thread::sleep(FLOOD);

    assert_eq!(other.text(), "not disturbed");
    assert_eq!(other.stderr, "");
    watch.assert_bounded();
    run.signal(libc::SIGINT);
    run.finish().expect(130);
    host.assert_clean();
}

#[rstest]
#[case::message_of_4_gib("answers 4 GiB")]
#[case::messages_that_nobody_asked_for("answers what nobody asked")]
fn flood_of_answers_costs_no_memory(#[case] attack: &str) {
    let host = Host::with_shared_images();
    let run = attacked(&host, attack).start();
    let watch = Watch::start(vec![run.id(), host.process_of("role:vmm")]);

    let run = run.finish().expect(125);

    watch.assert_bounded();
    assert!(run.stderr.len() < 16 << 10, "{} bytes", run.stderr.len());
    host.assert_clean();
}

/// A guest has no limits but the host's; a container has the kernel's, too, which may come first.
#[rstest]
#[case::guest(true)]
#[case::container(false)]
fn open_files_are_bounded(#[case] is_guest: bool) {
    let host = Host::with_shared_images();
    let container = if is_guest {
        attacked(&host, "open files")
    } else {
        host.container_on(&tree(&host))
            .command(["/hostile", "open files", "/"])
    };
    let run = container.memory(96).start();
    let watch = Watch::start(vec![host.process_of("role:fs")]);

    let run = run.finish().expect(if is_guest { 125 } else { 0 });

    watch.assert_bounded();
    let said = run.text() + &run.stderr;
    assert!(
        said.contains("opened") && said.contains("Too many open files"),
        "{said}"
    );
    host.assert_clean();
}

/// Looks at processes until it is asked what it saw.
struct Watch {
    over: Sender<()>,
    looking: JoinHandle<Most>,
}

/// The most that any of the processes had at a time.
#[derive(Debug, Default)]
struct Most {
    /// In KiB.
    memory: u64,
    /// In KiB.
    console: u64,
    descriptors: u64,
}

impl Watch {
    fn start(processes: Vec<i32>) -> Self {
        let (over, asked) = mpsc::channel();
        let looking = thread::spawn(move || {
            let mut most = Most::default();
            while asked.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) {
                for process in &processes {
                    most.look(*process);
                }
            }
            most
        });
        Self { over, looking }
    }

    #[track_caller]
    fn assert_bounded(self) {
        drop(self.over);
        let Most {
            memory,
            console,
            descriptors,
        } = self.looking.join().unwrap();
        assert!(memory > 0, "no process was looked at");
        assert!(
            memory < MEMORY,
            "a process had {memory} KiB, and {descriptors} descriptors"
        );
        assert!(console <= CONSOLE, "{console} KiB of the console are kept");
        assert!(
            descriptors < DESCRIPTORS,
            "a process had {descriptors} descriptors"
        );
    }
}

impl Most {
    /// Takes in what a process has now; nothing if it is gone.
    fn look(&mut self, process: i32) {
        self.memory = self.memory.max(own_memory(process).unwrap_or(0));
        let descriptors: Vec<_> = fs::read_dir(format!("/proc/{process}/fd"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        self.descriptors = self.descriptors.max(descriptors.len() as u64);
        // The first ones are what it was started with; looking at thousands of others would take the flood's time.
        for descriptor in descriptors.iter().take(16) {
            let is_console = fs::read_link(descriptor)
                .is_ok_and(|target| target.to_string_lossy().contains("memfd:console"));
            if let (true, Ok(metadata)) = (is_console, fs::metadata(descriptor)) {
                self.console = self.console.max(metadata.len() >> 10);
            }
        }
    }
}

/// Memory that is a process's alone, in KiB. The guest's is shared.
fn own_memory(process: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}
