// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Loads a kernel for PVH boot: kernel, initrd, command line, ACPI tables and vCPU start state
