use std::collections::BTreeSet;

use gpuzone_cuda_abi::FunctionIndex;

use super::*;
use crate::codec::{DecodeError, Source};

#[test]
fn every_supported_symbol_is_one_of_cudas_and_listed_once() {
    let mut seen = BTreeSet::new();
    for supported in SUPPORT {
        let symbol = supported.symbol;
        assert!(FunctionIndex::of(symbol).is_some(), "{symbol} is not exported by CUDA 13.0");
        assert!(seen.insert(symbol), "{symbol} is listed twice");
    }
    assert_eq!(support("cuLaunchKernel"), Some(Kind::Posted));
    assert_eq!(support("cuMemAllocManaged"), None);
}

#[test]
fn opcodes_are_positions() {
    for (number, opcode) in (0u16..).zip(Opcode::ALL) {
        assert_eq!(Opcode::of(number), Ok(*opcode));
    }
    assert_eq!(Opcode::of(9999), Err(DecodeError::Opcode(9999)));
}

#[test]
fn calls_read_back() {
    let launch = Launch {
        function: FunctionId(7),
        stream: StreamId(16),
        grid: [1, 2, 3],
        block: [4, 5, 6],
        shared: 7,
        settings: vec![LaunchSetting { attribute: 2, value: [1, 0, 0] }],
        arguments: vec![1, 2, 3],
    };
    let mut bytes = Vec::new();
    launch.put(&mut bytes);
    let mut source = Source::new(&bytes);
    assert_eq!(Launch::get(&mut source), Ok(launch));
    assert_eq!(source.finish(), Ok(()));
    for cut in 0..bytes.len() {
        assert!(Launch::get(&mut Source::new(&bytes[..cut])).is_err(), "cut at {cut}");
    }
}

#[test]
fn a_list_that_claims_to_be_long_takes_no_memory() {
    let bytes = u32::MAX.to_le_bytes();
    assert_eq!(Vec::<u64>::get(&mut Source::new(&bytes)), Err(DecodeError::Short));
    assert_eq!(Vec::<u8>::get(&mut Source::new(&bytes)), Err(DecodeError::Short));
    assert_eq!(String::get(&mut Source::new(&bytes)), Err(DecodeError::Short));
}
