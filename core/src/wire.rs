//! Protobuf messages inside commands, as serde sees them: their own bytes, since commands travel between members in a
//! form that has no names. `#[serde(with = "crate::wire")]`, for an optional one `"crate::wire::option"`.

use cvlan_proto::Message;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(crate) fn serialize<M: Message, S: Serializer>(message: &M, to: S) -> Result<S::Ok, S::Error> {
    message.encode_to_vec().serialize(to)
}

pub(crate) fn deserialize<'de, M: Message + Default, D: Deserializer<'de>>(from: D) -> Result<M, D::Error> {
    read(&Vec::deserialize(from)?)
}

fn read<M: Message + Default, E: serde::de::Error>(bytes: &[u8]) -> Result<M, E> {
    M::decode(bytes).map_err(E::custom)
}

pub(crate) mod option {
    use super::*;

    pub(crate) fn serialize<M: Message, S: Serializer>(message: &Option<M>, to: S) -> Result<S::Ok, S::Error> {
        message.as_ref().map(Message::encode_to_vec).serialize(to)
    }

    pub(crate) fn deserialize<'de, M: Message + Default, D: Deserializer<'de>>(from: D) -> Result<Option<M>, D::Error> {
        Option::<Vec<u8>>::deserialize(from)?.map(|bytes| read::<M, D::Error>(&bytes)).transpose()
    }
}
