// SPDX-License-Identifier: GPL-2.0-only
//! Stands for `kernel` on machines other than x86-64, for which the helper's code is not written: there is no such
//! backend, and asking for one says so.

use super::normalise::Trace;
use super::replay::{Backend, Fail, Meter};
use crate::mm::{Call, MmRules, VmaInfo};

/// There is none.
#[derive(Debug)]
pub enum KernelBackend {}

impl KernelBackend {
    /// Says that there is none.
    ///
    /// # Errors
    /// Always.
    pub fn new(_: &Trace) -> Result<Self, String> {
        Err("--against kernel needs an x86-64 host: the helper's code is written for it".into())
    }

    /// Never called.
    pub fn mapped_breaks(&self) -> u32 {
        match *self {}
    }
}

/// Never called.
///
/// # Errors
/// None.
pub fn observed_rules(b: &mut KernelBackend) -> Result<MmRules, String> {
    match *b {}
}

impl Backend for KernelBackend {
    fn new_space(&mut self, _: u32) -> Result<(), String> {
        match *self {}
    }
    fn brk_start(&mut self, _: u32, _: u64) -> Result<(), String> {
        match *self {}
    }
    fn fork(&mut self, _: u32, _: u32, _: &mut Meter) -> Result<(), Fail> {
        match *self {}
    }
    fn end(&mut self, _: u32, _: &mut Meter) -> Result<(), String> {
        match *self {}
    }
    fn call(&mut self, _: u32, _: &Call, _: &mut Meter) -> Result<u64, Fail> {
        match *self {}
    }
    fn maps(&mut self, _: u32) -> Result<Vec<VmaInfo>, String> {
        match *self {}
    }
    fn smaps(&mut self, _: u32) -> Result<Vec<VmaInfo>, String> {
        match *self {}
    }
    fn map_count(&mut self, _: u32) -> u32 {
        match *self {}
    }
    fn has(&self, _: u32) -> bool {
        match *self {}
    }
}
