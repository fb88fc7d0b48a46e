// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The notes of a core: registers in two forms, and what Linux says of itself.
//!
//! gdb reads the general registers as a process's (`NT_PRSTATUS`); `crash` takes control and segment registers from the
//! notes that QEMU writes, and where a kernel lies from VMCOREINFO.

use coracle_memory::{GuestAddress, GuestMemory};
use kvm_bindings::{kvm_dtable, kvm_segment};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use crate::vcpu::Registers;

/// `NT_PRSTATUS`.
const PROCESS_STATUS: u32 = 1;
/// The name of Linux's own note, with its NUL.
const VMCOREINFO: &[u8; 11] = b"VMCOREINFO\0";
/// What it begins with.
const VMCOREINFO_BEGIN: &[u8] = b"OSRELEASE=";
/// Linux gives it a page.
const VMCOREINFO_MAX: usize = 4096;
/// The header of a note: sizes of name and description, and the kind.
const HEADER: usize = 12;
/// What a VMCOREINFO note takes at most.
pub(super) const VMCOREINFO_ROOM: u64 = (HEADER + 12 + VMCOREINFO_MAX) as u64;

/// The registers of all vCPUs.
pub(super) fn registers(vcpus: &[Registers]) -> Vec<u8> {
    let processes = (1..).zip(vcpus).flat_map(|(id, registers)| {
        note(
            b"CORE\0",
            PROCESS_STATUS,
            ProcessStatus::new(id, registers).as_bytes(),
        )
    });
    let cpus = vcpus
        .iter()
        .flat_map(|registers| note(b"QEMU\0", 0, CpuState::new(registers).as_bytes()));
    processes.chain(cpus).collect()
}

fn note(name: &[u8], kind: u32, description: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for size in [name.len(), description.len()] {
        // Both are of a few KiB.
        bytes.extend((size as u32).to_le_bytes());
    }
    bytes.extend(kind.to_le_bytes());
    for field in [name, description] {
        bytes.extend_from_slice(field);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// Whether a page of guest memory begins as Linux's note does. The guest may have written this anywhere: what it says is
/// as true as the rest of its memory.
pub(super) fn is_vmcoreinfo(page: &[u8]) -> bool {
    let Some((header, rest)) = page.split_at_checked(HEADER) else {
        return false;
    };
    header[..4] == (VMCOREINFO.len() as u32).to_le_bytes()
        && header[8..] == [0; 4]
        && rest.starts_with(VMCOREINFO)
        && rest
            .get(12..)
            .is_some_and(|text| text.starts_with(VMCOREINFO_BEGIN))
}

/// The note that begins at `address`.
pub(super) fn vmcoreinfo(memory: &GuestMemory, address: u64) -> Option<Vec<u8>> {
    let field = |offset: u64| Some(GuestAddress(address.checked_add(offset)?));
    let size: u32 = memory.read_obj(field(4)?).ok()?;
    let size = usize::try_from(size).ok()?;
    if !(1..=VMCOREINFO_MAX).contains(&size) {
        return None;
    }
    let mut description = vec![0; size];
    memory
        .read(field(HEADER as u64 + 12)?, &mut description)
        .ok()?;
    Some(note(VMCOREINFO, 0, &description))
}

/// `struct elf_prstatus` of Linux on x86-64.
#[derive(IntoBytes, Immutable, FromZeros)]
#[repr(C)]
struct ProcessStatus {
    signal_information: [u32; 3],
    signal: u16,
    padding: u16,
    signals: [u64; 2],
    /// The process's number, by which debuggers tell threads apart.
    process: u32,
    other_processes: [u32; 3],
    times: [u64; 8],
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    rbp: u64,
    rbx: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rax: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    system_call: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
    fs_base: u64,
    gs_base: u64,
    ds: u64,
    es: u64,
    fs: u64,
    gs: u64,
    floating_point_is_valid: u32,
    more_padding: u32,
}

const _: () = assert!(size_of::<ProcessStatus>() == 336);

impl ProcessStatus {
    fn new(process: u32, registers: &Registers) -> Self {
        let (general, special) = (&registers.general, &registers.special);
        Self {
            process,
            r15: general.r15,
            r14: general.r14,
            r13: general.r13,
            r12: general.r12,
            rbp: general.rbp,
            rbx: general.rbx,
            r11: general.r11,
            r10: general.r10,
            r9: general.r9,
            r8: general.r8,
            rax: general.rax,
            rcx: general.rcx,
            rdx: general.rdx,
            rsi: general.rsi,
            rdi: general.rdi,
            // None is under way.
            system_call: u64::MAX,
            rip: general.rip,
            cs: special.cs.selector.into(),
            rflags: general.rflags,
            rsp: general.rsp,
            ss: special.ss.selector.into(),
            fs_base: special.fs.base,
            gs_base: special.gs.base,
            ds: special.ds.selector.into(),
            es: special.es.selector.into(),
            fs: special.fs.selector.into(),
            gs: special.gs.selector.into(),
            ..Self::new_zeroed()
        }
    }
}

/// A vCPU as QEMU writes it, version 1.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct CpuState {
    version: u32,
    size: u32,
    /// RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP, R8 to R15, RIP, RFLAGS.
    general: [u64; 18],
    /// CS, DS, ES, FS, GS, SS, LDT, TR, GDT, IDT.
    segments: [SegmentState; 10],
    control: [u64; 5],
    kernel_gs_base: u64,
}

const _: () = assert!(size_of::<CpuState>() == 440);

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct SegmentState {
    selector: u32,
    limit: u32,
    flags: u32,
    padding: u32,
    base: u64,
}

impl CpuState {
    fn new(registers: &Registers) -> Self {
        let (general, special) = (&registers.general, &registers.special);
        Self {
            version: 1,
            size: size_of::<Self>() as u32,
            general: [
                general.rax,
                general.rbx,
                general.rcx,
                general.rdx,
                general.rsi,
                general.rdi,
                general.rsp,
                general.rbp,
                general.r8,
                general.r9,
                general.r10,
                general.r11,
                general.r12,
                general.r13,
                general.r14,
                general.r15,
                general.rip,
                general.rflags,
            ],
            segments: [
                SegmentState::of(&special.cs),
                SegmentState::of(&special.ds),
                SegmentState::of(&special.es),
                SegmentState::of(&special.fs),
                SegmentState::of(&special.gs),
                SegmentState::of(&special.ss),
                SegmentState::of(&special.ldt),
                SegmentState::of(&special.tr),
                SegmentState::table(&special.gdt),
                SegmentState::table(&special.idt),
            ],
            control: [special.cr0, 0, special.cr2, special.cr3, special.cr4],
            kernel_gs_base: registers.kernel_gs_base,
        }
    }
}

impl SegmentState {
    fn of(segment: &kvm_segment) -> Self {
        let bit = |value: u8, at: u32| u32::from(value & 1) << at;
        Self {
            selector: segment.selector.into(),
            limit: segment.limit,
            // The second word of a descriptor.
            flags: u32::from(segment.type_ & 0xf) << 8
                | bit(segment.s, 12)
                | u32::from(segment.dpl & 3) << 13
                | bit(segment.present, 15)
                | bit(segment.avl, 20)
                | bit(segment.l, 21)
                | bit(segment.db, 22)
                | bit(segment.g, 23),
            padding: 0,
            base: segment.base,
        }
    }

    fn table(table: &kvm_dtable) -> Self {
        Self {
            selector: 0,
            limit: table.limit.into(),
            flags: 0,
            padding: 0,
            base: table.base,
        }
    }
}
