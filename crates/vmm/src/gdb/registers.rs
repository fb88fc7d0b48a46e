// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vCPU's registers in the form of gdb's protocol: those of any x86-64 program, the bases of FS and GS, by which Linux
//! finds its per-CPU data, and the control registers.

use std::sync::LazyLock;

use gdbstub::arch::{Arch, Registers};
use gdbstub_arch::x86::reg::{X86_64CoreRegs, X86SegmentRegs, X87FpuInternalRegs};
use kvm_bindings::{kvm_fpu, kvm_regs, kvm_sregs};

/// The architecture, as gdb is told of it.
pub(super) enum Guest64 {}

impl Arch for Guest64 {
    type Usize = u64;
    type Registers = GuestRegisters;
    type BreakpointKind = usize;
    type RegId = ();

    fn target_description_xml() -> Option<&'static str> {
        static DESCRIPTION: LazyLock<String> = LazyLock::new(description);
        Some(&DESCRIPTION)
    }
}

/// Registers besides those of [`X86_64CoreRegs`], of eight bytes each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SystemRegisters {
    pub(super) fs_base: u64,
    pub(super) gs_base: u64,
    pub(super) cr0: u64,
    pub(super) cr2: u64,
    pub(super) cr3: u64,
    pub(super) cr4: u64,
    pub(super) efer: u64,
}

impl SystemRegisters {
    const SIZE: usize = 7 * 8;

    fn words(&self) -> [u64; 7] {
        [
            self.fs_base,
            self.gs_base,
            self.cr0,
            self.cr2,
            self.cr3,
            self.cr4,
            self.efer,
        ]
    }
}

/// The registers of a vCPU.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct GuestRegisters {
    pub(super) core: X86_64CoreRegs,
    pub(super) system: SystemRegisters,
}

impl Registers for GuestRegisters {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.core.pc()
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        self.core.gdb_serialize(&mut write_byte);
        let words = self.system.words().map(u64::to_le_bytes);
        for byte in words.as_flattened() {
            write_byte(Some(*byte));
        }
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        let at = bytes.len().checked_sub(SystemRegisters::SIZE).ok_or(())?;
        let (core, system) = bytes.split_at(at);
        self.core.gdb_deserialize(core)?;
        let (words, _) = system.as_chunks::<8>();
        let [fs_base, gs_base, cr0, cr2, cr3, cr4, efer] = *words else {
            return Err(());
        };
        let word = u64::from_le_bytes;
        self.system = SystemRegisters {
            fs_base: word(fs_base),
            gs_base: word(gs_base),
            cr0: word(cr0),
            cr2: word(cr2),
            cr3: word(cr3),
            cr4: word(cr4),
            efer: word(efer),
        };
        Ok(())
    }
}

impl GuestRegisters {
    pub(super) fn of_kvm(general: &kvm_regs, special: &kvm_sregs, fpu: &kvm_fpu) -> Self {
        let core = X86_64CoreRegs {
            regs: [
                general.rax,
                general.rbx,
                general.rcx,
                general.rdx,
                general.rsi,
                general.rdi,
                general.rbp,
                general.rsp,
                general.r8,
                general.r9,
                general.r10,
                general.r11,
                general.r12,
                general.r13,
                general.r14,
                general.r15,
            ],
            // The upper half is reserved.
            eflags: general.rflags as u32,
            rip: general.rip,
            segments: X86SegmentRegs {
                cs: special.cs.selector.into(),
                ss: special.ss.selector.into(),
                ds: special.ds.selector.into(),
                es: special.es.selector.into(),
                fs: special.fs.selector.into(),
                gs: special.gs.selector.into(),
            },
            st: fpu.fpr.map(|register| {
                let (value, _) = register.split_at(10);
                value.try_into().unwrap_or_default()
            }),
            fpu: X87FpuInternalRegs {
                fctrl: fpu.fcw.into(),
                fstat: fpu.fsw.into(),
                ftag: full_tags(fpu.ftwx).into(),
                fop: fpu.last_opcode.into(),
                ..Default::default()
            },
            xmm: fpu.xmm.map(u128::from_le_bytes),
            mxcsr: fpu.mxcsr,
        };
        let system = SystemRegisters {
            fs_base: special.fs.base,
            gs_base: special.gs.base,
            cr0: special.cr0,
            cr2: special.cr2,
            cr3: special.cr3,
            cr4: special.cr4,
            efer: special.efer,
        };
        Self { core, system }
    }

    /// The general registers.
    pub(super) fn general(&self) -> kvm_regs {
        let [
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rbp,
            rsp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
        ] = self.core.regs;
        kvm_regs {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rbp,
            rsp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip: self.core.rip,
            rflags: self.core.eflags.into(),
        }
    }

    /// Puts what is settable of the floating point registers into `fpu`.
    pub(super) fn fill_fpu(&self, fpu: &mut kvm_fpu) {
        for (to, from) in fpu.fpr.iter_mut().zip(&self.core.st) {
            to[..from.len()].copy_from_slice(from);
        }
        fpu.xmm = self.core.xmm.map(u128::to_le_bytes);
        fpu.mxcsr = self.core.mxcsr;
        // Registers of 16 bits.
        fpu.fcw = self.core.fpu.fctrl as u16;
        fpu.fsw = self.core.fpu.fstat as u16;
        fpu.ftwx = abridged_tags(self.core.fpu.ftag as u16);
    }

    /// Whether all that cannot be set is as in `other`.
    pub(super) fn fixed_part_is_that_of(&self, other: &Self) -> bool {
        let fixed = |registers: &Self| SystemRegisters {
            fs_base: 0,
            gs_base: 0,
            ..registers.system.clone()
        };
        self.core.segments == other.core.segments && fixed(self) == fixed(other)
    }
}

/// Two bits a register, of which 3 is "empty", from one bit each.
fn full_tags(abridged: u8) -> u16 {
    (0..8)
        .filter(|register| abridged >> register & 1 == 0)
        .fold(0, |tags, register| tags | 0b11 << (2 * register))
}

fn abridged_tags(full: u16) -> u8 {
    (0..8)
        .filter(|register| full >> (2 * register) & 0b11 != 0b11)
        .fold(0, |tags, register| tags | 1 << register)
}

/// gdb's description of the registers, in the order in which they are sent.
fn description() -> String {
    const FLAGS: [(&str, u8); 17] = [
        ("CF", 0),
        ("", 1),
        ("PF", 2),
        ("AF", 4),
        ("ZF", 6),
        ("SF", 7),
        ("TF", 8),
        ("IF", 9),
        ("DF", 10),
        ("OF", 11),
        ("NT", 14),
        ("RF", 16),
        ("VM", 17),
        ("AC", 18),
        ("VIF", 19),
        ("VIP", 20),
        ("ID", 21),
    ];
    const GENERAL: [&str; 17] = [
        "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15", "rip",
    ];
    const SEGMENTS: [&str; 6] = ["cs", "ss", "ds", "es", "fs", "gs"];
    const FPU: [&str; 8] = [
        "fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop",
    ];
    const BASES: [&str; 2] = ["fs_base", "gs_base"];
    const CONTROL: [&str; 5] = ["cr0", "cr2", "cr3", "cr4", "efer"];

    let register = |name: &str, bits: u32, kind: &str| {
        format!(r#"<reg name="{name}" bitsize="{bits}" type="{kind}"/>"#)
    };
    let flags =
        FLAGS.map(|(name, bit)| format!(r#"<field name="{name}" start="{bit}" end="{bit}"/>"#));
    let general = GENERAL.map(|name| match name {
        "rip" => register(name, 64, "code_ptr"),
        "rsp" | "rbp" => register(name, 64, "data_ptr"),
        _ => register(name, 64, "int64"),
    });
    let segments = SEGMENTS.map(|name| register(name, 32, "int32"));
    let stack = [0, 1, 2, 3, 4, 5, 6, 7].map(|at| register(&format!("st{at}"), 80, "i387_ext"));
    let fpu = FPU.map(|name| register(name, 32, "int"));
    let xmm: String = (0..16)
        .map(|at| register(&format!("xmm{at}"), 128, "uint128"))
        .collect();
    [
        r#"<target version="1.0"><architecture>i386:x86-64</architecture>"#,
        r#"<feature name="org.gnu.gdb.i386.core"><flags id="i386_eflags" size="4">"#,
        &flags.concat(),
        "</flags>",
        &general.concat(),
        &register("eflags", 32, "i386_eflags"),
        &segments.concat(),
        &stack.concat(),
        &fpu.concat(),
        r#"</feature><feature name="org.gnu.gdb.i386.sse">"#,
        &xmm,
        &register("mxcsr", 32, "int"),
        r#"</feature><feature name="org.gnu.gdb.i386.segments">"#,
        &BASES.map(|name| register(name, 64, "int")).concat(),
        r#"</feature><feature name="coracle.control">"#,
        &CONTROL.map(|name| register(name, 64, "int")).concat(),
        "</feature></target>",
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn registers() -> GuestRegisters {
        let mut general = kvm_regs {
            rax: 1,
            r15: 15,
            rip: 0xffff_ffff_8100_0000,
            rflags: 0x202,
            ..Default::default()
        };
        general.rsp = 0x1000;
        let mut special = kvm_sregs::default();
        special.cs.selector = 0x10;
        special.gs.base = 0xffff_8880_0000_0000;
        special.cr3 = 0x1000;
        let mut fpu = kvm_fpu::default();
        fpu.xmm[15] = [7; 16];
        fpu.fpr[1] = [9; 16];
        fpu.fcw = 0x37f;
        GuestRegisters::of_kvm(&general, &special, &fpu)
    }

    #[test]
    fn registers_survive_the_protocol() {
        let mut bytes = Vec::new();
        registers().gdb_serialize(|byte| bytes.push(byte.unwrap()));

        let mut found = GuestRegisters::default();
        found.gdb_deserialize(&bytes).unwrap();

        assert_eq!(found, registers());
    }

    #[test]
    fn registers_cut_short_are_refused() {
        let mut bytes = Vec::new();
        registers().gdb_serialize(|byte| bytes.push(byte.unwrap()));

        for length in 0..bytes.len() {
            let result = GuestRegisters::default().gdb_deserialize(&bytes[..length]);

            assert_eq!(result, Err(()), "{length} bytes");
        }
    }

    #[test]
    fn description_has_as_many_bits_as_are_sent() {
        let mut sent = 0;
        registers().gdb_serialize(|_| sent += 8);

        let described: usize = description()
            .split("bitsize=\"")
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap().parse::<usize>().unwrap())
            .sum();

        assert_eq!(described, sent);
    }

    #[test]
    fn floating_point_registers_come_back() {
        let mut fpu = kvm_fpu::default();

        registers().fill_fpu(&mut fpu);

        assert_eq!((fpu.xmm[15], fpu.fcw), ([7; 16], 0x37f));
        assert_eq!(fpu.fpr[1][..10], [9; 10]);
    }

    #[rstest]
    #[case::rax(|registers: &mut GuestRegisters| registers.core.regs[0] = 5, true)]
    #[case::gs_base(|registers: &mut GuestRegisters| registers.system.gs_base = 5, true)]
    #[case::cs(|registers: &mut GuestRegisters| registers.core.segments.cs = 5, false)]
    #[case::cr3(|registers: &mut GuestRegisters| registers.system.cr3 = 5, false)]
    fn control_and_segment_registers_are_fixed(
        #[case] change: fn(&mut GuestRegisters),
        #[case] expected: bool,
    ) {
        let mut changed = registers();
        change(&mut changed);

        assert_eq!(changed.fixed_part_is_that_of(&registers()), expected);
    }

    #[rstest]
    #[case::empty(0, 0xffff)]
    #[case::full(0xff, 0)]
    #[case::first(1, 0xfffc)]
    fn tags_are_two_bits_or_one(#[case] abridged: u8, #[case] full: u16) {
        assert_eq!(full_tags(abridged), full);
        assert_eq!(abridged_tags(full), abridged);
    }
}
