// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VMM as a process of its own: what it says, how it ends, and what it can still reach.

mod common;

use std::fs;
use std::io::Read;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::harness::{Needs, Tests};
use common::process::{DEADLINE, Vmm, error_message};
use common::{code, driver, file};
use coracle_vmm::role::Event;
use coracle_vmm::{Config, EmptyNetwork, Exit, Vsock};
fn main() {
    let descriptor_that_is_not_there: &[u8] = br#"{"vcpus":1,"memory_mib":16,"kernel":77}"#;
    let control_socket_as_kernel: &[u8] = br#"{"vcpus":1,"memory_mib":16,"kernel":3}"#;
    let kernel_that_is_none: &[u8] = br#"{"vcpus":1,"memory_mib":16,"kernel":4}"#;
    let relative_socket: &[u8] =
        br#"{"vcpus":1,"memory_mib":16,"kernel":4,"vsock":{"cid":3,"uds":"vsock"}}"#;
    Tests::new()
        .cases(
            Needs::KvmAndRoot,
            named!(end_of_the_guest_is_told),
            [
                ("power_off", (code::power_off(), Exit::Shutdown, 1)),
                ("power_off_of_three_vcpus", (code::power_off(), Exit::Shutdown, 3)),
                ("keyboard_controller_reset", (code::out(0x64, 0xfe), Exit::Reset, 1)),
                ("keyboard_controller_reset_of_three_vcpus", (code::out(0x64, 0xfe), Exit::Reset, 3)),
                ("triple_fault", (code::TRIPLE_FAULT.to_vec(), Exit::TripleFault, 1)),
                ("triple_fault_of_three_vcpus", (code::TRIPLE_FAULT.to_vec(), Exit::TripleFault, 3)),
            ],
        )
        .cases(
            Needs::KvmAndRoot,
            named!(wrong_configuration_is_told),
            [
                ("no_configuration", (&b""[..], "the controlling process closed its socket before the configuration was complete")),
                ("no_json", (b"{]", "the configuration is wrong: ")),
                ("descriptor_that_is_not_there", (descriptor_that_is_not_there, "the configuration cannot be used: descriptor 77, named by the configuration, is not open")),
                ("control_socket_as_kernel", (control_socket_as_kernel, "the configuration names descriptor 3, which is the control socket")),
                ("kernel_that_is_none", (kernel_that_is_none, "the guest cannot boot: the kernel cannot be loaded: the kernel image is neither an ELF file nor a bzImage: it begins with the bytes 68 65 6c 6c")),
                ("relative_socket", (relative_socket, "the path vsock of the vsock device's socket is not absolute or has no file name")),
            ],
        )
        .cases(
            Needs::KvmAndRoot,
            named!(machine_ends_when_the_controlling_process_is_gone),
            [("spinning", &code::SPIN[..]), ("halted", &code::HALT)],
        )
        .tests(Needs::Nothing, named![without_a_control_socket_it_says_so,])
        .tests(
            Needs::KvmAndRoot,
            named![
                jailed_process_sees_nothing_of_the_host,
                jailed_process_sees_its_socket_directory_and_no_way_out_of_it,
                jailed_process_is_in_the_network_that_it_was_given,
                every_thread_is_confined,
                descriptors_that_are_not_named_are_closed,
                kernel_in_a_bzimage_boots,
                entropy_device_answers_a_confined_guest,
                console_of_a_confined_guest_is_logged,
                console_of_a_confined_guest_takes_input,
                host_connects_to_a_confined_guest,
                confined_guest_connects_to_the_host,
                nothing_is_left_of_a_killed_machine,
                log_that_nobody_reads_does_not_keep_a_machine,
                dump_of_the_process_is_not_to_be_had,
            ],
        )
        .run()
}

fn end_of_the_guest_is_told((code, reason, vcpus): (Vec<u8>, Exit, u8)) {
    let code = [&code[..], &code::SPIN].concat();
    let vmm = Vmm::with_guest(&code, Vec::new(), |config| config.vcpus = vcpus);

    let (events, status, stderr) = vmm.finish();

    assert_eq!(events, [Event::Running, Event::Exit { reason }]);
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
}

fn wrong_configuration_is_told((sent, expected): (&[u8], &str)) {
    let no_kernel = file(&b"hello ".repeat(20));
    let mut vmm = Vmm::start(vec![no_kernel.into()]);
    vmm.send(sent);
    vmm.control
        .get_ref()
        .shutdown(std::net::Shutdown::Write)
        .unwrap();

    let (events, status, _) = vmm.finish();

    let message = error_message(&events);
    assert!(message.starts_with(expected), "{message}");
    assert_eq!(status.code(), Some(1));
}

fn without_a_control_socket_it_says_so() {
    let output = Command::new(env!("CARGO_BIN_EXE_coracle-vmm"))
        .stdin(Stdio::null())
        .output()
        .unwrap();

    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "coracle vmm: descriptor 3 is not open: it has to be the control socket\n"
    );
    assert_eq!(output.status.code(), Some(1));
}

fn machine_ends_when_the_controlling_process_is_gone(code: &[u8]) {
    let mut vmm = Vmm::with_guest(code, Vec::new(), |config| config.vcpus = 2);
    assert_eq!(vmm.event(), Some(Event::Running));

    vmm.control
        .get_ref()
        .shutdown(std::net::Shutdown::Both)
        .unwrap();

    assert!(vmm.wait().success());
}

fn jailed_process_sees_nothing_of_the_host() {
    let mut vmm = Vmm::with_guest(&code::SPIN, Vec::new(), |config| config.vcpus = 2);
    assert_eq!(vmm.event(), Some(Event::Running));

    let root: Vec<_> = fs::read_dir(vmm.proc("root")).unwrap().collect();
    let shared: Vec<_> = ["mnt", "net", "ipc", "uts"]
        .into_iter()
        .filter(|name| {
            let namespace = format!("ns/{name}");
            fs::read_link(vmm.proc(&namespace)).unwrap()
                == fs::read_link(Path::new("/proc/self").join(namespace)).unwrap()
        })
        .collect();
    let interfaces = fs::read_to_string(vmm.proc("net/dev")).unwrap();
    let mounts = fs::read_to_string(vmm.proc("mountinfo")).unwrap();

    assert!(root.is_empty(), "{root:?}");
    assert!(shared.is_empty(), "{shared:?}");
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    // Two lines of heading and the loopback interface, which is down.
    assert_eq!(interfaces.lines().count(), 3, "{interfaces}");
}

fn jailed_process_sees_its_socket_directory_and_no_way_out_of_it() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("beside"), "").unwrap();
    let mut vmm = Vmm::with_guest(&code::SPIN, Vec::new(), |config| {
        let uds = directory.path().join("vsock");
        config.vsock = Some(Vsock { cid: 3, uds });
    });
    assert_eq!(vmm.event(), Some(Event::Running));

    let seen = ["root", "root/..", "cwd", "cwd/.."].map(|place| names(&vmm.proc(place)));
    let mounts = fs::read_to_string(vmm.proc("mountinfo")).unwrap();

    assert_eq!(seen, [["beside", "vsock"]; 4]);
    let [mount] = mounts.lines().collect::<Vec<_>>()[..] else {
        panic!("not one mount:\n{mounts}");
    };
    // The mount point and the mount's own options.
    let fields: Vec<_> = mount.split(' ').collect();
    let options: Vec<_> = fields[5].split(',').collect();
    assert_eq!(fields[4], "/");
    for option in ["nosuid", "nodev", "noexec"] {
        assert!(options.contains(&option), "{option}: {mount}");
    }
}

fn jailed_process_is_in_the_network_that_it_was_given() {
    let network = EmptyNetwork::begin().unwrap().finish().unwrap();
    let given = fs::read_link(format!("/proc/self/fd/{}", network.as_raw_fd())).unwrap();
    let mut vmm = Vmm::with_guest(&code::SPIN, vec![network], |config| {
        config.network = Some(5);
    });
    assert_eq!(vmm.event(), Some(Event::Running));

    let found = fs::read_link(vmm.proc("ns/net")).unwrap();

    assert_eq!(found, given);
    assert_ne!(found, fs::read_link("/proc/thread-self/ns/net").unwrap());
}

/// The names in a directory, sorted.
fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn every_thread_is_confined() {
    let mut vmm = Vmm::with_guest(&code::SPIN, Vec::new(), |config| config.vcpus = 2);
    assert_eq!(vmm.event(), Some(Event::Running));

    // A vCPU's thread confines itself when it begins, which may be after the others run. KVM may have a thread of its
    // own in the process.
    let threads = vmm.confined_threads(3, |name| !name.starts_with("kvm-"));

    for expected in [
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapInh:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        let confined = threads
            .iter()
            .filter(|status| status.lines().any(|line| line == expected));
        assert_eq!(confined.count(), 3, "{expected}");
    }
}

fn descriptors_that_are_not_named_are_closed() {
    let secret = file(b"secret");
    let identity = fs::read_link(format!("/proc/self/fd/{}", secret.as_raw_fd())).unwrap();
    let mut vmm = Vmm::with_guest(&code::SPIN, vec![secret.into()], |_| {});
    assert_eq!(vmm.event(), Some(Event::Running));

    let open: Vec<_> = fs::read_dir(vmm.proc("fd"))
        .unwrap()
        .map(|fd| fs::read_link(fd.unwrap().path()).unwrap())
        .collect();

    assert!(!open.contains(&identity), "{open:?}");
}

fn kernel_in_a_bzimage_boots() {
    let image = common::compressed_kernel(&[&code::power_off()[..], &code::SPIN].concat());
    let mut vmm = Vmm::start(vec![file(&image).into()]);
    vmm.send(&serde_json::to_vec(&Config::new(1, 16, 4)).unwrap());

    let (events, _, stderr) = vmm.finish();

    let reason = Exit::Shutdown;
    assert_eq!(events, [Event::Running, Event::Exit { reason }], "{stderr}");
}

fn entropy_device_answers_a_confined_guest() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let code = [
        driver::set_up(driver::WINDOW, 1),
        driver::publish(driver::WINDOW, 0, 64, true),
        driver::wait_for_used(0),
        // The length in the used ring's first entry.
        code::load(driver::used(0) + 8),
        code::print_eax(),
        code::power_off(),
        code::SPIN.to_vec(),
    ]
    .concat();
    let vmm = Vmm::with_guest(&code, vec![writer.into()], |config| {
        config.rng = true;
        config.serial_log = Some(5);
    });

    let (events, _, stderr) = vmm.finish();

    let mut output = Vec::new();
    reader.read_to_end(&mut output).unwrap();
    assert_eq!(output, 64u32.to_le_bytes(), "{events:?} {stderr}");
}

fn console_of_a_confined_guest_is_logged() {
    let mut log = file(b"");
    let code = [
        driver::set_up(driver::WINDOW, 2),
        code::store(driver::buffer(1), u32::from_le_bytes(*b"boat")),
        driver::publish(driver::WINDOW, 1, 4, false),
        driver::wait_for_used(1),
        code::power_off(),
        code::SPIN.to_vec(),
    ]
    .concat();
    let vmm = Vmm::with_guest(&code, vec![log.try_clone().unwrap().into()], |config| {
        config.console_log = Some(5);
    });

    let (events, _, stderr) = vmm.finish();

    let mut output = String::new();
    std::io::Seek::rewind(&mut log).unwrap();
    log.read_to_string(&mut output).unwrap();
    assert_eq!(output, "boat", "{events:?} {stderr}");
}

fn console_of_a_confined_guest_takes_input() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let code = [
        driver::set_up(driver::WINDOW, 2),
        driver::publish(driver::WINDOW, 0, 16, true),
        driver::wait_for_used(0),
        code::load(driver::buffer(0)),
        code::print_eax(),
        code::power_off(),
        code::SPIN.to_vec(),
    ]
    .concat();
    let mut vmm = Vmm::with_guest(&code, vec![writer.into(), theirs.into()], |config| {
        config.serial_log = Some(5);
        config.console_input = Some(6);
    });
    assert_eq!(vmm.event(), Some(Event::Running));

    ours.write_all(b"boat").unwrap();

    let (events, _, stderr) = vmm.finish();
    let mut output = Vec::new();
    reader.read_to_end(&mut output).unwrap();
    assert_eq!(output, b"boat", "{events:?} {stderr}");
}

/// A guest with a vsock device that waits for a packet and prints how long it was.
fn guest_that_receives_a_packet() -> Vec<u8> {
    [
        driver::set_up(driver::WINDOW, 3),
        driver::publish(driver::WINDOW, 0, 4096, true),
        driver::wait_for_used(0),
        code::load(driver::used(0) + 8),
        code::print_eax(),
        code::power_off(),
        code::SPIN.to_vec(),
    ]
    .concat()
}

fn host_connects_to_a_confined_guest() {
    let directory = tempfile::tempdir().unwrap();
    let uds = directory.path().join("vsock");
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut vmm = Vmm::with_guest(
        &guest_that_receives_a_packet(),
        vec![writer.into()],
        |config| {
            config.vsock = Some(Vsock {
                cid: 3,
                uds: uds.clone(),
            });
            config.serial_log = Some(5);
        },
    );
    assert_eq!(vmm.event(), Some(Event::Running));

    let mut host = UnixStream::connect(&uds).unwrap();
    host.write_all(b"CONNECT 1024\n").unwrap();

    let (events, _, stderr) = vmm.finish();
    let mut output = Vec::new();
    reader.read_to_end(&mut output).unwrap();
    // The request to connect is a packet without data: a header of 44 bytes.
    assert_eq!(output, 44u32.to_le_bytes(), "{events:?} {stderr}");
    assert!(!uds.exists(), "the socket's name goes with the machine");
}

fn confined_guest_connects_to_the_host() {
    let directory = tempfile::tempdir().unwrap();
    let uds = directory.path().join("vsock");
    let listener = UnixListener::bind(directory.path().join("vsock_1023")).unwrap();
    listener.set_nonblocking(true).unwrap();
    // The header of a request: CIDs, ports, no data, stream socket, operation 1, a buffer of 64 KiB.
    let request = [3, 0, 2, 0, 5555, 1023, 0, 1 | 1 << 16, 0, 0x1_0000, 0];
    let code = [
        driver::set_up(driver::WINDOW, 3),
        (0..)
            .zip(request)
            .flat_map(|(at, word)| code::store(driver::buffer(1) + at * 4, word))
            .collect(),
        driver::publish(driver::WINDOW, 1, 44, false),
        code::SPIN.to_vec(),
    ]
    .concat();
    let mut vmm = Vmm::with_guest(&code, Vec::new(), |config| {
        config.vsock = Some(Vsock { cid: 3, uds });
    });
    assert_eq!(vmm.event(), Some(Event::Running));

    let started = Instant::now();
    let accepted = loop {
        match listener.accept() {
            Err(_) if started.elapsed() < DEADLINE => sleep(Duration::from_millis(5)),
            accepted => break accepted.is_ok(),
        }
    };

    assert!(accepted, "the guest's connection did not arrive");
}

fn log_that_nobody_reads_does_not_keep_a_machine() {
    let (reader, writer) = std::io::pipe().unwrap();
    let write = code::out(0x3f8, b'.');
    let back = (-(write.len() as i8) - 2).cast_unsigned();
    let code = [&write[..], &[0xeb, back]].concat();
    let mut vmm = Vmm::with_guest(&code, vec![writer.into()], |config| {
        config.serial_log = Some(5);
    });
    assert_eq!(vmm.event(), Some(Event::Running));
    vmm.fill_up(&reader);

    let control = vmm.control.get_ref();
    control.shutdown(std::net::Shutdown::Write).unwrap();

    let reason = Exit::Stopped;
    assert_eq!(vmm.finish().0, [Event::Exit { reason }]);
}

fn nothing_is_left_of_a_killed_machine() {
    let directory = tempfile::tempdir().unwrap();
    let uds = directory.path().join("vsock");
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut vmm = Vmm::with_guest(&code::SPIN, vec![theirs.into()], |config| {
        config.vcpus = 2;
        config.vsock = Some(Vsock { cid: 3, uds });
        config.serial_log = Some(5);
    });
    assert_eq!(vmm.event(), Some(Event::Running));

    vmm.process.kill().unwrap();

    let (events, status, _) = vmm.finish();
    assert_eq!((events, status.signal()), (Vec::new(), Some(libc::SIGKILL)));
    // The serial port's socket ends when no process has it any more, nor a thread that is still on its way out.
    assert_eq!(ours.read_to_end(&mut Vec::new()).unwrap(), 0);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !mounts.contains(directory.path().to_str().unwrap()),
        "{mounts}"
    );
    assert_eq!(names(directory.path()), ["vsock"]);
    directory.close().unwrap();
}

fn dump_of_the_process_is_not_to_be_had() {
    let mut vmm = Vmm::with_guest(&code::SPIN, Vec::new(), |_| {});
    assert_eq!(vmm.event(), Some(Event::Running));

    let limits = fs::read_to_string(vmm.proc("limits")).unwrap();

    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    let numbers: Vec<_> = core
        .split_whitespace()
        .filter(|word| word.parse::<u64>().is_ok())
        .collect();
    assert_eq!(numbers, ["0", "0"]);
}
