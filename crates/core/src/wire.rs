// @generated from proto/onceward/v1/record.proto by `cargo xtask codegen`.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Body {
    #[prost(string, tag = "1")]
    pub route: ::prost::alloc::string::String,
    #[prost(string, tag = "2")]
    pub tenant: ::prost::alloc::string::String,
    #[prost(string, tag = "3")]
    pub env: ::prost::alloc::string::String,
    #[prost(uint64, tag = "4")]
    pub claimed_at: u64,
    #[prost(uint64, tag = "5")]
    pub settled_at: u64,
    #[prost(uint64, tag = "6")]
    pub not_before: u64,
    #[prost(message, optional, tag = "7")]
    pub outcome: ::core::option::Option<Outcome>,
    #[prost(message, optional, tag = "8")]
    pub checkpoint: ::core::option::Option<Checkpoint>,
    #[prost(string, tag = "9")]
    pub reason: ::prost::alloc::string::String,
}
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Outcome {
    #[prost(uint32, tag = "1")]
    pub status: u32,
    #[prost(message, repeated, tag = "2")]
    pub headers: ::prost::alloc::vec::Vec<Header>,
    #[prost(bytes = "bytes", tag = "3")]
    pub body: ::prost::bytes::Bytes,
    #[prost(message, repeated, tag = "4")]
    pub trailers: ::prost::alloc::vec::Vec<Header>,
    #[prost(bool, tag = "5")]
    pub body_not_kept: bool,
    #[prost(uint64, tag = "6")]
    pub body_until: u64,
}
#[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
pub struct Header {
    #[prost(bytes = "bytes", tag = "1")]
    pub name: ::prost::bytes::Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub value: ::prost::bytes::Bytes,
}
#[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
pub struct Checkpoint {
    #[prost(uint32, tag = "1")]
    pub seq: u32,
    #[prost(string, tag = "2")]
    pub name: ::prost::alloc::string::String,
    #[prost(bytes = "bytes", tag = "3")]
    pub data: ::prost::bytes::Bytes,
}
