// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests of a few instructions, from their start to the machine's end.

mod common;

use std::fs::File;
use std::io::{PipeReader, Read, pipe};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use common::harness::{Needs, Tests};
use common::{code, config, file};
use coracle_vmm::{Config, Exit, Vm, VmError};

fn main() {
    Tests::new()
        .cases(
            Needs::Kvm,
            named!(guest_ends_its_machine),
            [
                ("power_off", (code::power_off(), Exit::Shutdown)),
                ("acpi_reset", (code::out(0x602, 1), Exit::Reset)),
                (
                    "keyboard_controller_reset",
                    (code::out(0x64, 0xfe), Exit::Reset),
                ),
                (
                    "triple_fault",
                    (code::TRIPLE_FAULT.to_vec(), Exit::TripleFault),
                ),
                (
                    "triple_fault_of_another_vcpu",
                    (another_vcpu_meets_a_triple_fault(), Exit::TripleFault),
                ),
            ],
        )
        .cases(
            Needs::Kvm,
            named!(first_vcpu_wakes_the_others),
            [("of_1", 1), ("of_2", 2), ("of_16", 16), ("of_32", 32)],
        )
        .cases(
            Needs::Kvm,
            named!(guest_finds_its_virtio_device),
            [
                ("magic", (0xd000_0000, *b"virt")),
                ("version", (0xd000_0004, 2u32.to_le_bytes())),
                ("entropy_device", (0xd000_0008, 4u32.to_le_bytes())),
                ("no_second_device", (0xd000_1000, [0xff; 4])),
            ],
        )
        .cases(
            Needs::Kvm,
            named!(machine_is_stopped_from_another_thread),
            [
                ("one_spinning", (&code::SPIN[..], 1)),
                ("four_spinning", (&code::SPIN, 4)),
                ("thirty_two_that_wait", (&code::SPIN, 32)),
                ("one_halted", (&code::HALT, 1)),
                ("four_halted", (&code::HALT, 4)),
            ],
        )
        .cases(
            Needs::Kvm,
            named!(machine_that_cannot_be_is_refused),
            refusals(),
        )
        .tests(
            Needs::Kvm,
            named![
                guest_writes_to_the_serial_port,
                guest_starts_with_the_address_of_its_start_information,
                port_without_a_device_reads_as_ones,
                machine_stops_when_its_peer_is_gone,
                running_machine_that_is_dropped_leaves_nothing,
                second_vcpu_waits_to_be_woken,
                vcpus_that_spin_are_stopped_together,
                instruction_that_cannot_be_fetched_is_an_internal_error,
            ],
        )
        .run()
}

fn refusals() -> [(&'static str, Refusal); 7] {
    [
        (
            "no_vcpu",
            (
                |config| config.vcpus = 0,
                "0 vCPUs are asked for; the host runs 1 to ",
            ),
        ),
        (
            "no_memory",
            (
                |config| config.memory_mib = 0,
                "0 MiB of guest memory are not possible",
            ),
        ),
        (
            "memory_beyond_addresses",
            (
                |config| config.memory_mib = u64::MAX,
                "18446744073709551615 MiB of guest memory are not possible",
            ),
        ),
        (
            "memory_too_small",
            (
                |config| config.memory_mib = 1,
                "the guest cannot boot: the kernel cannot be loaded: segment 1 of the kernel, ",
            ),
        ),
        (
            "kernel_that_is_none",
            (
                |config| config.kernel = file(&[b'#'; 100]).into(),
                "the guest cannot boot: the kernel cannot be loaded: the kernel image is neither an ELF file nor a bzImage: it begins with the bytes 23 23 23 23",
            ),
        ),
        (
            "kernel_that_is_a_directory",
            (
                |config| config.kernel = File::open("/").unwrap().into(),
                "the guest cannot boot: the kernel cannot be loaded: the kernel image cannot be read: it is not a regular file",
            ),
        ),
        (
            "initrd_larger_than_memory",
            (
                |config| config.initrd = Some(file(&vec![1; 16 << 20]).into()),
                "the guest cannot boot: the initrd cannot be loaded: the initrd has 0x1000000 bytes, but only ",
            ),
        ),
    ]
}

/// A machine whose serial port is read here.
fn with_serial(code: &[u8]) -> (Config<OwnedFd>, PipeReader) {
    let (reader, writer) = pipe().unwrap();
    let config = Config {
        serial_log: Some(writer.into()),
        ..config(code)
    };
    (config, reader)
}

/// Runs `code` to the end of the machine and returns what it wrote to COM1.
fn serial_output(code: &[u8], change: impl FnOnce(&mut Config<OwnedFd>)) -> Vec<u8> {
    let (mut config, mut reader) = with_serial(code);
    change(&mut config);
    Vm::new(config).unwrap().run().unwrap();
    let mut output = Vec::new();
    reader.read_to_end(&mut output).unwrap();
    output
}

fn another_vcpu_meets_a_triple_fault() -> Vec<u8> {
    let code = [&code::ENTER_PROTECTED_MODE[..], &code::TRIPLE_FAULT].concat();
    [code::segments(), code::wake_others(&code)].concat()
}

fn guest_ends_its_machine((code, expected): (Vec<u8>, Exit)) {
    let code = [&code[..], &code::SPIN].concat();

    let exit = Vm::new(Config {
        vcpus: 2,
        ..config(&code)
    })
    .unwrap()
    .run()
    .unwrap();

    assert_eq!(exit, expected);
}

fn instruction_that_cannot_be_fetched_is_an_internal_error() {
    let error = Vm::new(config(&code::JUMP_NOWHERE))
        .unwrap()
        .run()
        .unwrap_err();

    assert_eq!(
        sentence(&error),
        "the virtual machine failed: vCPU 0 cannot go on: KVM met an internal error, number 1"
    );
}

fn first_vcpu_wakes_the_others(vcpus: u8) {
    let code = [
        code::wake_others(&code::COUNT_ME),
        code::wait_for_count(u16::from(vcpus) - 1),
        code::power_off(),
        code::SPIN.to_vec(),
    ]
    .concat();

    let mut output = serial_output(&code, |config| config.vcpus = vcpus);

    output.sort();
    assert_eq!(output, (1..vcpus).collect::<Vec<_>>());
}

fn vcpus_that_spin_are_stopped_together() {
    let (config, mut reader) = with_serial(
        &[
            &code::wake_others(&[&code::COUNT_ME[..23], &code::SPIN].concat())[..],
            &code::SPIN,
        ]
        .concat(),
    );
    let running = Vm::new(Config {
        vcpus: 32,
        ..config
    })
    .unwrap()
    .start(None)
    .unwrap();
    reader.read_exact(&mut [0; 31]).unwrap();

    let begin = Instant::now();
    drop(running);

    let took = begin.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
}

fn guest_writes_to_the_serial_port() {
    let print: Vec<u8> = b"boat"
        .iter()
        .flat_map(|byte| code::out(0x3f8, *byte))
        .chain(code::power_off())
        .chain(code::SPIN)
        .collect();

    let output = serial_output(&print, |_| {});

    assert_eq!(output, b"boat");
}

fn guest_starts_with_the_address_of_its_start_information() {
    // mov (%ebx), %eax: the magic of the start information.
    let code = [
        &[0x8b, 0x03][..],
        &code::print_eax(),
        &code::power_off(),
        &code::SPIN,
    ]
    .concat();

    let output = serial_output(&code, |_| {});

    assert_eq!(output, 0x336e_c578u32.to_le_bytes());
}

fn port_without_a_device_reads_as_ones() {
    let code = [
        &code::input(0x500)[..],
        &code::out_al(0x3f8),
        &code::power_off(),
        &code::SPIN,
    ]
    .concat();

    let output = serial_output(&code, |_| {});

    assert_eq!(output, [0xff]);
}

fn guest_finds_its_virtio_device((address, expected): (u32, [u8; 4])) {
    let code = [
        &code::load(address)[..],
        &code::print_eax(),
        &code::power_off(),
        &code::SPIN,
    ]
    .concat();

    let output = serial_output(&code, |config| config.rng = true);

    assert_eq!(output, expected);
}

fn machine_is_stopped_from_another_thread((code, vcpus): (&[u8], u8)) {
    let vm = Vm::new(Config {
        vcpus,
        ..config(code)
    })
    .unwrap();
    let stopper = vm.stopper();
    let other = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        stopper.stop();
    });

    let exit = vm.run().unwrap();

    assert_eq!(exit, Exit::Stopped);
    other.join().unwrap();
}

fn machine_stops_when_its_peer_is_gone() {
    let mut vm = Vm::new(config(&code::SPIN)).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    vm.stop_when_closed(ours.into());
    let mut running = vm.start(None).unwrap();
    drop(theirs);

    let exit = running.wait().unwrap();

    assert_eq!(exit, Exit::Stopped);
}

fn running_machine_that_is_dropped_leaves_nothing() {
    let (config, mut reader) = with_serial(&code::SPIN);
    let running = Vm::new(Config { vcpus: 2, ..config })
        .unwrap()
        .start(None)
        .unwrap();

    drop(running);

    // The pipe ends when the last device and the last thread that could write to it are gone.
    assert_eq!(reader.read_to_end(&mut Vec::new()).unwrap(), 0);
}

fn second_vcpu_waits_to_be_woken() {
    let code = [&code::out(0x3f8, b'!')[..], &code::power_off(), &code::SPIN].concat();

    let output = serial_output(&code, |config| config.vcpus = 2);

    assert_eq!(output, b"!");
}

/// An error and its reasons in one line.
fn sentence(error: &VmError) -> String {
    let mut line = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(reason) = source {
        line = format!("{line}: {reason}");
        source = reason.source();
    }
    line
}

/// A change of a configuration that makes it useless, and how the error begins.
type Refusal = (fn(&mut Config<OwnedFd>), &'static str);

fn machine_that_cannot_be_is_refused((change, expected): Refusal) {
    let mut config = config(&code::SPIN);
    change(&mut config);

    let error = Vm::new(config).err().map(|error| sentence(&error));

    let error = error.unwrap_or_default();
    assert!(error.starts_with(expected), "{error}");
}
