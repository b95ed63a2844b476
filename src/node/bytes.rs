#![allow(unsafe_code)] // The trait below is unsafe to implement; what it calls is napi's own conversion.

use napi::bindgen_prelude::{FromNapiValue, TypeName, Uint8Array, ValidateNapiValue};
use napi::{Result, ValueType, sys};

/// The bytes of a Uint8Array, copied while the call is still on JavaScript's thread: afterwards the
/// caller may change them, or transfer the buffer away.
pub struct Bytes(pub Vec<u8>);

impl TypeName for Bytes {
    fn type_name() -> &'static str {
        Uint8Array::type_name()
    }

    fn value_type() -> ValueType {
        Uint8Array::value_type()
    }
}

impl ValidateNapiValue for Bytes {
    unsafe fn validate(env: sys::napi_env, value: sys::napi_value) -> Result<sys::napi_value> {
        // SAFETY: the arguments are passed on as they came.
        unsafe { Uint8Array::validate(env, value) }
    }
}

impl FromNapiValue for Bytes {
    unsafe fn from_napi_value(env: sys::napi_env, value: sys::napi_value) -> Result<Self> {
        // SAFETY: the arguments are passed on as they came.
        unsafe { Uint8Array::from_napi_value(env, value) }.map(|bytes| Self(bytes.to_vec()))
    }
}
