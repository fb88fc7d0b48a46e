// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VMM as a program: the role of [`coracle_vmm::role`], for controlling processes that do not embed it.

use std::process::ExitCode;

fn main() -> ExitCode {
    coracle_vmm::role::main()
}
