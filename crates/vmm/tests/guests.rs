// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests of a few instructions, from their start to the machine's end.

mod common;

use std::fs::File;
use std::io::{PipeReader, Read, pipe};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use common::{code, config, file};
use coracle_vmm::{Config, Exit, Vm, VmError};
use rstest::rstest;

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

#[rstest]
#[case::power_off(code::power_off(), Exit::Shutdown)]
#[case::acpi_reset(code::out(0x602, 1), Exit::Reset)]
#[case::keyboard_controller_reset(code::out(0x64, 0xfe), Exit::Reset)]
#[case::triple_fault(code::TRIPLE_FAULT.to_vec(), Exit::TripleFault)]
fn guest_ends_its_machine(#[case] code: Vec<u8>, #[case] expected: Exit) {
    needs_kvm!();
    let code = [&code[..], &code::SPIN].concat();

    let exit = Vm::new(config(&code)).unwrap().run().unwrap();

    assert_eq!(exit, expected);
}

#[test]
fn guest_writes_to_the_serial_port() {
    needs_kvm!();
    let print: Vec<u8> = b"boat"
        .iter()
        .flat_map(|byte| code::out(0x3f8, *byte))
        .chain(code::power_off())
        .chain(code::SPIN)
        .collect();

    let output = serial_output(&print, |_| {});

    assert_eq!(output, b"boat");
}

#[test]
fn guest_starts_with_the_address_of_its_start_information() {
    needs_kvm!();
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

#[test]
fn port_without_a_device_reads_as_ones() {
    needs_kvm!();
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

#[rstest]
#[case::magic(0xd000_0000, *b"virt")]
#[case::version(0xd000_0004, 2u32.to_le_bytes())]
#[case::entropy_device(0xd000_0008, 4u32.to_le_bytes())]
#[case::no_second_device(0xd000_1000, [0xff; 4])]
fn guest_finds_its_virtio_device(#[case] address: u32, #[case] expected: [u8; 4]) {
    needs_kvm!();
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

#[rstest]
#[case::spinning(&code::SPIN)]
#[case::halted(&code::HALT)]
fn machine_is_stopped_from_another_thread(#[case] code: &[u8], #[values(1, 4)] vcpus: u8) {
    needs_kvm!();
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

#[test]
fn machine_stops_when_its_peer_is_gone() {
    needs_kvm!();
    let mut vm = Vm::new(config(&code::SPIN)).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    vm.stop_when_closed(ours.into());
    let mut running = vm.start(None).unwrap();
    drop(theirs);

    let exit = running.wait().unwrap();

    assert_eq!(exit, Exit::Stopped);
}

#[test]
fn running_machine_that_is_dropped_leaves_nothing() {
    needs_kvm!();
    let (config, mut reader) = with_serial(&code::SPIN);
    let running = Vm::new(Config { vcpus: 2, ..config })
        .unwrap()
        .start(None)
        .unwrap();

    drop(running);

    // The pipe ends when the last device and the last thread that could write to it are gone.
    assert_eq!(reader.read_to_end(&mut Vec::new()).unwrap(), 0);
}

#[test]
fn second_vcpu_waits_to_be_woken() {
    needs_kvm!();
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

#[rstest]
#[case::no_vcpu(|config: &mut Config<OwnedFd>| config.vcpus = 0, "0 vCPUs are asked for; the host runs 1 to ")]
#[case::no_memory(|config: &mut Config<OwnedFd>| config.memory_mib = 0, "0 MiB of guest memory are not possible")]
#[case::memory_beyond_addresses(|config: &mut Config<OwnedFd>| config.memory_mib = u64::MAX, "18446744073709551615 MiB of guest memory are not possible")]
#[case::memory_too_small(|config: &mut Config<OwnedFd>| config.memory_mib = 1, "the guest cannot boot: the kernel cannot be loaded: segment 1 of the kernel, ")]
#[case::kernel_that_is_none(|config: &mut Config<OwnedFd>| config.kernel = file(&[b'#'; 100]).into(), "the guest cannot boot: the kernel cannot be loaded: the kernel image is not an ELF file: it begins with the bytes 23 23 23 23")]
#[case::kernel_that_is_a_directory(|config: &mut Config<OwnedFd>| config.kernel = File::open("/").unwrap().into(), "the guest cannot boot: the kernel cannot be loaded: the kernel image cannot be read: it is not a regular file")]
#[case::initrd_larger_than_memory(|config: &mut Config<OwnedFd>| config.initrd = Some(file(&vec![1; 16 << 20]).into()), "the guest cannot boot: the initrd cannot be loaded: the initrd has 0x1000000 bytes, but only ")]
fn machine_that_cannot_be_is_refused(
    #[case] change: fn(&mut Config<OwnedFd>),
    #[case] expected: &str,
) {
    needs_kvm!();
    let mut config = config(&code::SPIN);
    change(&mut config);

    let error = Vm::new(config).err().map(|error| sentence(&error));

    let error = error.unwrap_or_default();
    assert!(error.starts_with(expected), "{error}");
}
