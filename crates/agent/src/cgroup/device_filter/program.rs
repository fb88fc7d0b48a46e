// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rules as a program of eBPF.

use super::rules::{ACCESS_ALL, Rule};

// `struct bpf_cgroup_dev_ctx` of linux/bpf.h.
pub(super) const CONTEXT_ACCESS: i16 = 0;
pub(super) const CONTEXT_MAJOR: i16 = 4;
pub(super) const CONTEXT_MINOR: i16 = 8;

// Opcodes: class, operation and source as linux/bpf_common.h and linux/bpf.h combine them.
pub(super) const LOAD_WORD: u8 = 0x61;
pub(super) const MOVE: u8 = 0xb4;
pub(super) const MOVE_REGISTER: u8 = 0xbc;
pub(super) const AND: u8 = 0x54;
pub(super) const SHIFT_RIGHT: u8 = 0x74;
pub(super) const JUMP_IF_EQUAL: u8 = 0x16;
pub(super) const JUMP_IF_NOT_EQUAL: u8 = 0x56;
pub(super) const JUMP_IF_REGISTER_NOT_EQUAL: u8 = 0x5e;
pub(super) const EXIT: u8 = 0x95;

// Registers.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) code: u8,
    pub(super) registers: u8,
    pub(super) offset: i16,
    pub(super) immediate: i32,
}

impl Instruction {
    fn new(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Self {
        Self {
            code,
            registers: from << 4 | to,
            offset,
            immediate,
        }
    }
}

/// Writes the program: what is asked for into registers, then each rule, the last one first, then a denial.
pub(super) fn compile(rules: &[Rule]) -> Vec<Instruction> {
    let insn = Instruction::new;
    let mut program = vec![
        insn(LOAD_WORD, TYPE, CONTEXT, CONTEXT_ACCESS, 0),
        insn(MOVE_REGISTER, ACCESS, TYPE, 0, 0),
        insn(AND, TYPE, 0, 0, 0xffff),
        insn(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        insn(LOAD_WORD, MAJOR, CONTEXT, CONTEXT_MAJOR, 0),
        insn(LOAD_WORD, MINOR, CONTEXT, CONTEXT_MINOR, 0),
    ];
    for rule in rules.iter().rev() {
        append(&mut program, rule);
        if rule.fits_everything() {
            // The kernel refuses a program with instructions that cannot be reached.
            return program;
        }
    }
    program.extend([insn(MOVE, RESULT, 0, 0, 0), insn(EXIT, 0, 0, 0, 0)]);
    program
}

fn append(program: &mut Vec<Instruction>, rule: &Rule) {
    let insn = Instruction::new;
    // Each of these leaves the rule if it does not fit; where to is filled in below.
    let mut tests = Vec::new();
    let (major, minor) = (
        rule.major.map(u32::cast_signed),
        rule.minor.map(u32::cast_signed),
    );
    for (register, value) in [(TYPE, rule.kind), (MAJOR, major), (MINOR, minor)] {
        if let Some(value) = value {
            tests.push(insn(JUMP_IF_NOT_EQUAL, register, 0, 0, value));
        }
    }
    if rule.access != ACCESS_ALL {
        tests.push(insn(MOVE_REGISTER, SCRATCH, ACCESS, 0, 0));
        tests.push(insn(AND, SCRATCH, 0, 0, rule.access));
        tests.push(if rule.allow {
            // It allows what is asked for only if it names all of it,
            insn(JUMP_IF_REGISTER_NOT_EQUAL, SCRATCH, ACCESS, 0, 0)
        } else {
            // and denies what is asked for if it names any of it.
            insn(JUMP_IF_EQUAL, SCRATCH, 0, 0, 0)
        });
    }
    let decision = [
        insn(MOVE, RESULT, 0, 0, i32::from(rule.allow)),
        insn(EXIT, 0, 0, 0, 0),
    ];
    let length = tests.len() + decision.len();
    for (position, mut test) in tests.into_iter().enumerate() {
        if matches!(
            test.code,
            JUMP_IF_NOT_EQUAL | JUMP_IF_EQUAL | JUMP_IF_REGISTER_NOT_EQUAL
        ) {
            // At most eight instructions: it always fits.
            test.offset = i16::try_from(length - position - 1).unwrap_or(i16::MAX);
        }
        program.push(test);
    }
    program.extend(decision);
}
