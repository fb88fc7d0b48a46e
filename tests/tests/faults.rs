// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whatever dies, the others notice, say so once, and leave nothing behind.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use coracle_tests::tools::{self, kill};
use coracle_tests::{Host, Image, Running, guests};
use rstest::rstest;

#[rstest]
#[case::vmm("vmm")]
#[case::file_system("fs")]
fn killed_role_ends_the_run_with_a_reason(
    #[case] role: &str,
    #[values(Image::BUSYBOX, Image::DEBIAN)] image: Image,
) {
    let host = Host::with_shared_images();
    let mut run = host
        .container(image)
        .shell("echo ready; while :; do ls /bin >/dev/null; done")
        .start();
    assert_eq!(run.line(), "ready");

    kill(host.process_of(&format!("role:{role}")));

    let says = format!("the {role} process failed (signal: 9");
    run.finish().expect(125).says(&says);
    host.assert_clean();
}

#[rstest]
#[case::vmm_at_once("vmm", 0)]
#[case::vmm_while_the_kernel_boots("vmm", 600)]
#[case::file_system_at_once("fs", 0)]
#[case::file_system_while_the_kernel_boots("fs", 600)]
fn role_killed_while_the_guest_boots_ends_the_run_with_a_reason(
    #[case] role: &str,
    #[case] milliseconds: u64,
) {
    let host = Host::with_shared_images();
    let run = host
        .container(Image::BUSYBOX)
        .command(["sleep", "1000"])
        .start();
    let process = host.process_of(&format!("role:{role}"));
    thread::sleep(Duration::from_millis(milliseconds));

    kill(process);

    let says = format!("the {role} process failed (signal: 9");
    run.finish().expect(125).says_once(&[&says]);
    host.assert_clean();
}

#[test]
fn run_killed_at_any_moment_leaves_nothing() {
    // The first unpacks the image; in the emulated lab a container starts after about two seconds.
    let host = Host::new();
    for milliseconds in (0..2400).step_by(150) {
        let run = host
            .container(Image::BUSYBOX)
            .command(["sleep", "1000"])
            .start();
        thread::sleep(Duration::from_millis(milliseconds));

        run.signal(libc::SIGKILL);

        run.finish().expect(137);
        host.assert_clean();
    }
}

#[rstest]
#[case::killed(libc::SIGKILL, 137)]
#[case::interrupted(libc::SIGINT, 130)]
fn run_that_ends_while_it_unpacks_leaves_nothing(#[case] signal: i32, #[case] status: i32) {
    let host = Host::new();
    let run = host.container(Image::DEBIAN).command(["true"]).start();
    let partial = host.images().join("tmp");
    let deadline = Instant::now() + Duration::from_secs(30);
    while fs::read_dir(&partial).map_or(0, Iterator::count) == 0 {
        assert!(Instant::now() < deadline, "the run unpacks its image");
        thread::sleep(Duration::from_millis(5));
    }

    run.signal(signal);

    run.finish().expect(status);
    host.assert_clean();
    assert!(
        !host.images().join("trees/sha256").exists(),
        "no image is there, since none was whole"
    );
}

#[test]
fn killed_janitor_is_not_missed_and_volumes_are_kept() {
    let host = Host::with_shared_images();
    let volume = host.folder("volume");
    let file = host.file("volume/file", "kept");
    // The state is reached by a name that the kernel's list of mounts does not have.
    let state = host.files().join("state");
    host.folder("../state");
    symlink("../state", &state).unwrap();
    let mut run = host
        .container(Image::BUSYBOX)
        .variable("CORACLE_STATE", &state)
        .volume(&volume, "/data")
        .interactive()
        .shell("echo ready; read word; exit 3")
        .start();
    assert_eq!(run.line(), "ready");

    kill(janitor(&host, &run));
    drop(run.stdin());

    run.finish().expect(3);
    host.assert_clean();
    assert_eq!(fs::read_to_string(file).unwrap(), "kept");
}

#[test]
fn what_a_run_and_its_janitor_leave_is_swept_up_by_the_next_run() {
    let host = Host::with_shared_images();
    let volume = host.folder("volume");
    let file = host.file("volume/file", "kept");
    let mut run = host
        .container(Image::BUSYBOX)
        .volume(&volume, "/data")
        .shell("echo x > /layer; echo ready; sleep 1000")
        .start();
    assert_eq!(run.line(), "ready");

    kill(janitor(&host, &run));
    run.signal(libc::SIGKILL);
    run.finish().expect(137);
    let left: Vec<_> = fs::read_dir(host.containers()).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "there is something to sweep: {left:?}");
    let next = host.container(Image::BUSYBOX).command(["true"]).expect(0);

    assert_eq!(next.stderr, "");
    host.assert_clean();
    assert_eq!(fs::read_to_string(file).unwrap(), "kept");
}

#[test]
fn writable_layer_is_removed_however_deep_it_is() {
    let host = Host::with_shared_images();

    let run = host
        .container(Image::BUSYBOX)
        // Fewer descriptors than levels.
        .under(["prlimit", "--nofile=200:4096"])
        .shell("mkdir -p $(yes d/ | head -n 300 | tr -d '\\n') && echo made")
        .expect(0);

    assert_eq!((run.text().as_str(), run.stderr.as_str()), ("made", ""));
    host.assert_clean();
}

#[rstest]
fn run_killed_while_its_container_runs_leaves_nothing(
    #[values(Image::BUSYBOX, Image::DEBIAN)] image: Image,
) {
    let host = Host::with_shared_images();
    let mut run = host
        .container(image)
        .shell("echo ready; sleep 1000")
        .start();
    assert_eq!(run.line(), "ready");

    run.signal(libc::SIGKILL);

    run.finish().expect(137);
    host.assert_clean();
}

#[test]
fn run_that_floods_does_not_hinder_another() {
    let host = Host::with_shared_images();
    let hello = || {
        let started = Instant::now();
        let run = host.container(Image::BUSYBOX).command(["echo", "hello"]);
        assert_eq!(run.expect(0).text(), "hello");
        started.elapsed()
    };
    hello();
    let alone = hello();
    let mut flood = host
        .container(Image::BUSYBOX)
        .shell("yes > /dev/null & yes")
        .start();
    assert_eq!(flood.line(), "y");

    let beside = hello();

    // The flood may take a processor from it, and so may the tests beside it, but nothing else.
    assert!(beside < alone * 5, "{beside:?}, and {alone:?} alone");
    flood.signal(libc::SIGKILL);
    flood.finish().expect(137);
    host.assert_clean();
}

#[test]
fn guest_that_never_answers_is_given_up() {
    let host = Host::with_shared_images();
    let kernel = host.file("endless", guests::endless());
    let started = Instant::now();

    let run = host
        .container(Image::BUSYBOX)
        .boot_timeout(2)
        .kernel(&kernel)
        .expect(125);

    run.says("within 2 s");
    assert!(started.elapsed() < Duration::from_secs(20));
    host.assert_clean();
}

#[rstest]
#[case::resetting(&guests::resetting(), "reset")]
#[case::triple_faulting(&guests::triple_faulting(), "triple fault")]
fn end_of_the_guest_is_reported(#[case] kernel: &[u8], #[case] says: &str) {
    let host = Host::with_shared_images();
    let kernel = host.file("kernel", kernel);

    let run = host.container(Image::BUSYBOX).kernel(&kernel).expect(125);

    run.says_once(&[says]);
    host.assert_clean();
}

/// A first process that has Linux reset the machine as its ACPI tables say.
const RESETTING_INIT: &str = "#!/bin/busybox sh
/bin/busybox mkdir -p /sys
/bin/busybox mount -t sysfs sys /sys
echo acpi > /sys/kernel/reboot/type
/bin/busybox reboot -f
";

/// The port of these tables: the keyboard controller, which Linux falls back to, has another.
const RESET_PORT: &str = "0x602";

#[test]
fn guest_may_reset_as_its_acpi_tables_say() {
    let host = Host::with_shared_images();
    let initrd = guests::initramfs_with(RESETTING_INIT.as_bytes(), &[]);
    let trace = Trace::of_writes_to(RESET_PORT, &host);

    let run = host
        .container(Image::BUSYBOX)
        .initrd(&host.file("resetting.cpio", initrd))
        .expect(125);

    run.says("the guest reset itself");
    let traced = trace.text();
    assert!(traced.contains("pio_write at 0x602 size 1"), "{traced}");
    drop(trace);
    host.assert_clean();
}

/// What KVM tells of what guests write to a port.
struct Trace {
    file_system: PathBuf,
    instance: PathBuf,
}

impl Trace {
    fn of_writes_to(port: &str, host: &Host) -> Self {
        let file_system = host.folder("tracing");
        let path = file_system.display().to_string();
        tools::run("mount", &["-t", "tracefs", "tracing", &path]);
        let name = format!("instances/coracle-test-{}", std::process::id());
        let instance = file_system.join(name);
        fs::create_dir(&instance).unwrap();
        let events = instance.join("events/kvm/kvm_pio");
        fs::write(events.join("filter"), format!("port == {port}")).unwrap();
        fs::write(events.join("enable"), "1").unwrap();
        Self {
            file_system,
            instance,
        }
    }

    fn text(&self) -> String {
        fs::read_to_string(self.instance.join("trace")).unwrap()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // What fails here is left to be seen in the list of mounts.
        let _ = fs::remove_dir(&self.instance);
        let _ = rustix::mount::unmount(&self.file_system, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn panic_of_the_guests_kernel_is_shown() {
    let host = Host::with_shared_images();
    // The kernel finds nothing to run.
    let initrd = host.file("empty.cpio", guests::initramfs_without_init());

    let run = host.container(Image::BUSYBOX).initrd(&initrd).expect(125);

    // With the end of its console.
    run.says("panic").says("guest| ");
    host.assert_clean();
}

#[test]
fn interrupt_while_the_guest_boots_ends_the_run() {
    let host = Host::with_shared_images();
    let run = host
        .container(Image::BUSYBOX)
        .command(["sleep", "1000"])
        .start();
    host.process_of("role:vmm");

    run.signal(libc::SIGINT);

    run.finish().expect(130);
    host.assert_clean();
}

/// The process that cleans up after `run`: the fork of it that is not the run has its command line.
fn janitor(host: &Host, run: &Running) -> i32 {
    let processes = host.processes().into_iter();
    let mut forks =
        processes.filter(|(process, words)| *process != run.id() && words.contains("\0run\0"));
    forks.next().expect("there is a janitor").0
}
