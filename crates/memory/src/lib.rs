// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory: layout, backing and range-checked access by address and length
