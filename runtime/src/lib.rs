// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Runs OCI containers, each pod in a lightweight virtual machine of its own
