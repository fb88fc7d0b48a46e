// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! OCI images and bundles to a sandbox plan and a guest specification
