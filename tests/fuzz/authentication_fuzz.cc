// Every message of DH-HMAC-CHAP, the commands that carry them, and secrets: what is understood is encoded as it was.

#include <array>

#include "common/auth/secret.h"
#include "common/nvme/authentication.h"
#include "tests/fuzz/input.h"

using namespace rbt;
using namespace rbt::nvme;

namespace {

template <typename... Parts>
bool again(std::span<const std::byte> input, const Parts&... parts) {
  std::array<std::byte, kAuthBytesMax> out{};
  const std::size_t size = encode(out, parts...);
  return size != 0 && size <= input.size() + 72;
}

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto input = fuzz::bytes(data, size);
  const auto length = parse_auth_command(fuzz::entry(input));
  check(!length || (*length > 0 && *length <= kAuthBytesMax), "lengths are bounded");
  static_cast<void>(auth::Secret::parse(fuzz::text(data, size)));
  static_cast<void>(parse_auth_header(input));
  if (const auto negotiate = parse_auth_negotiate(input)) check(again(input, *negotiate), "negotiate");
  if (const auto challenge = parse_auth_challenge(input)) {
    check(challenge->challenge.size() == hash_bytes(challenge->hash), "a challenge is as long as its hash");
    check(challenge->dh_value.size() == dh_bytes(challenge->group), "a value is as long as its prime");
    check(again(input, *challenge), "challenge");
  }
  for (const AuthHash hash : kAuthHashes) {
    for (const DhGroup group : kDhGroups)
      if (const auto reply = parse_auth_reply(input, hash, group)) {
        check(reply->response.size() == hash_bytes(hash) && reply->dh_value.size() == dh_bytes(group), "lengths");
        check(again(input, *reply), "reply");
      }
    if (const auto success = parse_auth_success1(input, hash)) check(again(input, *success), "success1");
  }
  check(again(input, AuthMessage::failure1, parse_auth_failure(input)), "failure");
  return 0;
}
