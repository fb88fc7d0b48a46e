// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

#![doc = include_str!("../README.md")]

use std::fmt;

use libc::c_long;
use seccompiler::{BpfProgram, sock_filter};

/// `AUDIT_ARCH_X86_64`.
const ARCH_X86_64: u32 = 0xc000_003e;
/// Offset of the system call's number in `struct seccomp_data`.
const NUMBER: u32 = 0;
/// Offset of the architecture in `struct seccomp_data`.
const ARCH: u32 = 4;
/// Offset of the arguments, of eight bytes each, in `struct seccomp_data`.
const ARGUMENTS: u32 = 16;

/// `SECCOMP_RET_ALLOW`.
const ALLOW: u32 = 0x7fff_0000;
/// `SECCOMP_RET_TRAP`: the thread gets SIGSYS.
const TRAP: u32 = 0x0003_0000;
/// `SECCOMP_RET_KILL_PROCESS`.
const KILL: u32 = 0x8000_0000;

/// What becomes of a call that is not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Otherwise {
    /// The thread gets SIGSYS, whose handler may say which call it was (`SECCOMP_RET_TRAP`).
    Trap,
    /// The process ends (`SECCOMP_RET_KILL_PROCESS`).
    KillProcess,
}

/// Loads a word of `struct seccomp_data`.
const LOAD: u16 = 0x20;
/// Masks what was loaded.
const AND: u16 = 0x54;
/// Compares what was loaded for equality.
const JUMP_EQUAL: u16 = 0x15;
/// Compares what was loaded for being the same or more.
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
/// Goes on elsewhere.
const JUMP: u16 = 0x05;
/// Gives the verdict.
const RETURN: u16 = 0x06;

/// Comparisons in a row at the end of a bisection.
const ROW: usize = 2;

/// A system call that may be made.
#[derive(Debug, Clone)]
pub struct Call {
    number: u32,
    condition: Option<Condition>,
}

/// What an argument, of which the lower 32 bits count, has to be.
#[derive(Debug, Clone)]
struct Condition {
    argument: u32,
    mask: u32,
    values: Vec<u32>,
}

impl Call {
    /// Allowed with all arguments.
    #[must_use]
    pub fn any(number: c_long) -> Self {
        Self {
            // System call numbers are small and positive; one that is not would match nothing.
            number: u32::try_from(number).unwrap_or(u32::MAX),
            condition: None,
        }
    }

    /// Allowed if `argument`, counted from 0, is one of `values`.
    #[must_use]
    pub fn with(number: c_long, argument: u32, values: &[u32]) -> Self {
        Self::masked(number, argument, u32::MAX, values)
    }

    /// Allowed if none of the bits in `mask` is set in `argument`.
    #[must_use]
    pub fn without(number: c_long, argument: u32, mask: u32) -> Self {
        Self::masked(number, argument, mask, &[0])
    }

    fn masked(number: c_long, argument: u32, mask: u32, values: &[u32]) -> Self {
        Self {
            condition: Some(Condition {
                argument,
                mask,
                values: values.to_vec(),
            }),
            ..Self::any(number)
        }
    }
}

/// A list too long for jumps of 255 instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it allows too many system calls")
    }
}

impl std::error::Error for TooLong {}

/// The program that allows `calls`, each named once, and does as `otherwise` says with all others. A call of another
/// architecture ends the process.
///
/// # Errors
///
/// If there are more calls than its jumps reach over, of 255 instructions: 150 without conditions always fit.
pub fn compile(mut calls: Vec<Call>, otherwise: Otherwise) -> Result<BpfProgram, TooLong> {
    calls.sort_unstable_by_key(|call| call.number);
    // Written from its end to its beginning: where a jump goes is then known when it is written.
    let mut program = Backwards::new();
    let allow = program.push(RETURN, ALLOW);
    let kill = program.push(RETURN, KILL);
    let refuse = match otherwise {
        Otherwise::Trap => program.push(RETURN, TRAP),
        Otherwise::KillProcess => kill,
    };
    let targets: Vec<_> = calls
        .iter()
        .map(|call| match &call.condition {
            None => Ok((call.number, allow)),
            Some(condition) => Ok((call.number, program.condition(condition, allow, refuse)?)),
        })
        .collect::<Result<_, _>>()?;
    program.search(&targets, refuse)?;
    program.push(LOAD, NUMBER);
    program.jump_if(JUMP_EQUAL, ARCH_X86_64, None, Some(kill))?;
    program.push(LOAD, ARCH);
    Ok(program.into_forwards())
}

/// An instruction by its distance from the program's end.
#[derive(Debug, Clone, Copy)]
struct Label(usize);

/// A program whose last instruction comes first.
struct Backwards(Vec<sock_filter>);

impl Backwards {
    fn new() -> Self {
        Self(Vec::with_capacity(256))
    }

    fn push(&mut self, code: u16, k: u32) -> Label {
        self.push_jump(code, 0, 0, k)
    }

    fn push_jump(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Label {
        self.0.push(sock_filter { code, jt, jf, k });
        Label(self.0.len() - 1)
    }

    /// Compares with `k` and goes to one of two labels; none is the instruction after the comparison.
    fn jump_if(
        &mut self,
        code: u16,
        k: u32,
        then: Option<Label>,
        otherwise: Option<Label>,
    ) -> Result<Label, TooLong> {
        let next = self.0.len();
        // A label is of an instruction that was pushed, so it is less than `next`.
        let distance = |label: Option<Label>| {
            u8::try_from(label.map_or(0, |label| next - 1 - label.0)).map_err(|_| TooLong)
        };
        let (jt, jf) = (distance(then)?, distance(otherwise)?);
        Ok(self.push_jump(code, jt, jf, k))
    }

    /// Compares with each of `targets`, and goes to `otherwise` if none is the same.
    fn compare(&mut self, targets: &[(u32, Label)], otherwise: Label) -> Result<Label, TooLong> {
        // What follows in the program is not `otherwise`, so even comparing with nothing takes a jump.
        if targets.is_empty() {
            let distance = u32::try_from(self.0.len() - 1 - otherwise.0).map_err(|_| TooLong)?;
            return Ok(self.push(JUMP, distance));
        }
        let mut first = otherwise;
        for (at, &(value, target)) in targets.iter().rev().enumerate() {
            let miss = (at == 0).then_some(otherwise);
            first = self.jump_if(JUMP_EQUAL, value, Some(target), miss)?;
        }
        Ok(first)
    }

    fn condition(
        &mut self,
        condition: &Condition,
        allow: Label,
        refuse: Label,
    ) -> Result<Label, TooLong> {
        let targets: Vec<_> = condition
            .values
            .iter()
            .map(|value| (*value, allow))
            .collect();
        self.compare(&targets, refuse)?;
        if condition.mask != u32::MAX {
            self.push(AND, condition.mask);
        }
        Ok(self.push(LOAD, ARGUMENTS + 8 * condition.argument))
    }

    /// Bisects `targets`, which are sorted; goes to `otherwise` if none is the same.
    fn search(&mut self, targets: &[(u32, Label)], otherwise: Label) -> Result<Label, TooLong> {
        if targets.len() <= ROW {
            return self.compare(targets, otherwise);
        }
        let (low, high) = targets.split_at(targets.len() / 2);
        let above = self.search(high, otherwise)?;
        self.search(low, otherwise)?;
        self.jump_if(JUMP_GREATER_OR_EQUAL, high[0].0, Some(above), None)
    }

    fn into_forwards(self) -> BpfProgram {
        let mut program = self.0;
        program.reverse();
        program
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    /// What the kernel does with the program.
    fn verdict(program: &[sock_filter], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let word = |offset: u32| match offset {
            NUMBER => number,
            ARCH => arch,
            _ => arguments[((offset - ARGUMENTS) / 8) as usize] as u32,
        };
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at].clone();
            let skip = |holds| usize::from(if holds { jt } else { jf });
            at += 1;
            match code {
                LOAD => accumulator = word(k),
                AND => accumulator &= k,
                JUMP_EQUAL => at += skip(accumulator == k),
                JUMP_GREATER_OR_EQUAL => at += skip(accumulator >= k),
                JUMP => at += k as usize,
                RETURN => return k,
                _ => unreachable!("{code:#x}"),
            }
        }
    }

    fn is_allowed(program: &[sock_filter], number: u32, arguments: [u64; 6]) -> bool {
        verdict(program, ARCH_X86_64, number, arguments) == ALLOW
    }

    #[test]
    fn another_architecture_is_killed() {
        let program = compile(vec![Call::any(0)], Otherwise::Trap).unwrap();

        assert_eq!(verdict(&program, 0x4000_0003, 0, [0; 6]), KILL);
    }

    #[test]
    fn empty_list_allows_nothing() {
        let program = compile(Vec::new(), Otherwise::Trap).unwrap();

        assert_eq!(verdict(&program, ARCH_X86_64, 0, [0; 6]), TRAP);
    }

    #[test]
    fn what_is_not_allowed_may_end_the_process() {
        let program = compile(vec![Call::any(1)], Otherwise::KillProcess).unwrap();

        assert_eq!(verdict(&program, ARCH_X86_64, 0, [0; 6]), KILL);
        assert_eq!(verdict(&program, ARCH_X86_64, 1, [0; 6]), ALLOW);
    }

    #[test]
    fn argument_without_a_possible_value_allows_nothing() {
        let program = compile(vec![Call::with(5, 0, &[])], Otherwise::Trap).unwrap();

        assert!(!is_allowed(&program, 5, [0; 6]));
    }

    #[rstest]
    #[case::first_value([0, 7, 0, 0, 0, 0], true)]
    #[case::second_value([0, 9, 0, 0, 0, 0], true)]
    #[case::upper_half_does_not_count([0, 7 | 1 << 32, 0, 0, 0, 0], true)]
    #[case::another_value([0, 8, 0, 0, 0, 0], false)]
    #[case::value_in_another_argument([7, 0, 7, 7, 7, 7], false)]
    fn argument_has_to_be_one_of_the_values(#[case] arguments: [u64; 6], #[case] expected: bool) {
        let program = compile(
            vec![Call::with(5, 1, &[7, 9]), Call::any(6)],
            Otherwise::Trap,
        )
        .unwrap();

        assert_eq!(is_allowed(&program, 5, arguments), expected);
    }

    #[rstest]
    #[case::no_bit([0, 0, 0, 0, 0, 0], true)]
    #[case::other_bits([0, 0, 3, 0, 0, 0], true)]
    #[case::the_bit([0, 0, 4, 0, 0, 0], false)]
    #[case::the_bit_among_others([0, 0, 7, 0, 0, 0], false)]
    fn argument_must_not_have_the_bit(#[case] arguments: [u64; 6], #[case] expected: bool) {
        let program = compile(vec![Call::without(9, 2, 4)], Otherwise::Trap).unwrap();

        assert_eq!(is_allowed(&program, 9, arguments), expected);
    }

    #[test]
    fn as_many_calls_as_are_promised_fit() {
        for count in 0..=150 {
            let calls = (0..count).map(Call::any).collect();

            assert!(compile(calls, Otherwise::Trap).is_ok(), "{count}");
        }
    }

    #[test]
    fn list_too_long_for_its_jumps_is_refused() {
        let calls = (0..300).map(Call::any).collect();

        assert_eq!(compile(calls, Otherwise::Trap).err(), Some(TooLong));
    }

    proptest! {
        #[test]
        fn exactly_the_listed_calls_are_allowed(listed in prop::collection::btree_set(0u32..500, 0..60)) {
            let calls = listed.iter().map(|number| Call::any((*number).into())).collect();

            let program = compile(calls, Otherwise::Trap).unwrap();

            for number in (0..500).chain([u32::MAX, 1 << 30]) {
                prop_assert_eq!(is_allowed(&program, number, [0; 6]), listed.contains(&number));
            }
        }
    }
}
