//! The linker: inputs are kept here until the worker links all of them at once.

use std::ffi::{c_char, c_void};

use gpuzone_cuda_abi::{CuResult, link_input};
use gpuzone_wire::ring::{Payload, RingError};
use gpuzone_wire::spec::{Link, LinkInput, ModuleData};

use super::jit::options;
use crate::ffi::{Answer, api, put, put_if_wanted, text};
use crate::handles::{Kind, handle, number};
use crate::state::{State, with};
use crate::tables::Linker;

/// More than any worker takes.
const MOST: usize = 1 << 30;

fn create(
    count: u32,
    names: *const u32,
    values: *const *mut c_void,
    place: *mut *mut c_void,
) -> Answer {
    if place.is_null() {
        return Err(CuResult::INVALID_VALUE);
    }
    let options = options(count, names, values)?;
    with(|state| {
        let context = state.context()?;
        let id = state.new_number();
        let linker = Linker { context, options, inputs: Vec::new(), data: Vec::new(), made: None };
        state.linkers.insert(id, linker);
        put(place, handle(Kind::Linker, id))
    })
}

fn linker_of(state: &mut State, linker: *mut c_void) -> Answer<&mut Linker> {
    let id = number(Kind::Linker, linker).ok_or(CuResult::INVALID_HANDLE)?;
    state.linkers.get_mut(&id).ok_or(CuResult::INVALID_HANDLE)
}

fn add(linker: *mut c_void, kind: u32, data: &[u8]) -> Answer {
    if kind > link_input::LIBRARY {
        return Err(CuResult::NOT_SUPPORTED);
    }
    with(|state| {
        let linker = linker_of(state, linker)?;
        if data.len() > MOST - linker.data.len() {
            return Err(CuResult::OUT_OF_MEMORY);
        }
        linker.inputs.push(LinkInput { kind, bytes: data.len() as u64 });
        linker.data.extend_from_slice(data);
        Ok(())
    })
}

fn add_bytes(linker: *mut c_void, kind: u32, data: *const c_void, size: usize) -> Answer {
    if data.is_null() || isize::try_from(size).is_err() {
        return Err(CuResult::INVALID_VALUE);
    }
    // SAFETY: the driver API's contract: `size` bytes can be read.
    add(linker, kind, unsafe { std::slice::from_raw_parts(data.cast(), size) })
}

fn add_file(linker: *mut c_void, kind: u32, path: *const c_char) -> Answer {
    let data = std::fs::read(text(path)?).map_err(|_| CuResult::FILE_NOT_FOUND)?;
    add(linker, kind, &data)
}

fn complete(state: &mut State, handle: *mut c_void) -> Answer<(*mut c_void, usize)> {
    let linker = linker_of(state, handle)?;
    let (context, options) = (linker.context, linker.options.clone());
    let (inputs, data) = (linker.inputs.clone(), std::mem::take(&mut linker.data));
    for piece in data.chunks(state.piece) {
        state.client.post(context, &ModuleData {}, Payload::of(piece))?;
    }
    let request = Link {
        inputs,
        settings: options.settings.clone(),
        info_log: options.info.wanted(),
        error_log: options.error.wanted(),
    };
    let mut made: Vec<u8> = Vec::new();
    let reply = state.client.call_for_pieces(context, &request, Payload::NONE, |piece| {
        if piece.len() > MOST - made.len() {
            return Err(RingError::BadRecord);
        }
        // SAFETY: the piece lies in the ring until the next one is received.
        unsafe { piece.append_to(&mut made) };
        Ok(())
    })?;
    options.info.write(&reply.info_log);
    options.error.write(&reply.error_log);
    CuResult(reply.linked).ok()?;
    let linker = linker_of(state, handle)?;
    // Lies where it is as long as the linker does.
    let made = linker.made.insert(made);
    Ok((made.as_mut_ptr().cast(), made.len()))
}

api! {
    fn cuLinkCreate(
        count: u32, names: *const u32, values: *const *mut c_void, linker: *mut *mut c_void,
    ) {
        create(count, names, values, linker)
    }

    fn cuLinkCreate_v2(
        count: u32, names: *const u32, values: *const *mut c_void, linker: *mut *mut c_void,
    ) {
        create(count, names, values, linker)
    }

    fn cuLinkAddData(
        linker: *mut c_void, kind: u32, data: *const c_void, size: usize, _name: *const c_char,
        _count: u32, _names: *const u32, _values: *const *mut c_void,
    ) {
        add_bytes(linker, kind, data, size)
    }

    fn cuLinkAddData_v2(
        linker: *mut c_void, kind: u32, data: *const c_void, size: usize, _name: *const c_char,
        _count: u32, _names: *const u32, _values: *const *mut c_void,
    ) {
        add_bytes(linker, kind, data, size)
    }

    fn cuLinkAddFile(
        linker: *mut c_void, kind: u32, path: *const c_char,
        _count: u32, _names: *const u32, _values: *const *mut c_void,
    ) {
        add_file(linker, kind, path)
    }

    fn cuLinkAddFile_v2(
        linker: *mut c_void, kind: u32, path: *const c_char,
        _count: u32, _names: *const u32, _values: *const *mut c_void,
    ) {
        add_file(linker, kind, path)
    }

    fn cuLinkComplete(linker: *mut c_void, image: *mut *mut c_void, size: *mut usize) {
        with(|state| {
            let (made, length) = complete(state, linker)?;
            put_if_wanted(size, length);
            put(image, made)
        })
    }

    fn cuLinkDestroy(linker: *mut c_void) {
        with(|state| {
            let id = number(Kind::Linker, linker).ok_or(CuResult::INVALID_HANDLE)?;
            state.linkers.remove(&id).map(drop).ok_or(CuResult::INVALID_HANDLE)
        })
    }
}
