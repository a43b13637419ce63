// The server's side of NBD's handshake, byte by byte.
#include <algorithm>
#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "common/random.h"
#include "initiator/present/nbd_handshake.h"
#include "initiator/present/nbd_protocol.h"

using namespace rbt;
using namespace rbt::initiator::nbd;
using State = Handshake::State;

namespace {

const Export kAbout{
    .size = 0x0102030405060708, .flags = 0x016D, .block_min = 512, .block_preferred = 4096, .block_max = 1U << 21};

using Bytes_ = std::vector<std::byte>;

/// Big-endian numbers and text, one after the other.
class Words {
 public:
  template <typename T>
  Words& number(T value) {
    bytes_.resize(bytes_.size() + sizeof value);
    put_be(std::span(bytes_).last(sizeof value), value);
    return *this;
  }
  Words& u16(std::uint16_t value) { return number(value); }
  Words& u32(std::uint32_t value) { return number(value); }
  Words& u64(std::uint64_t value) { return number(value); }
  Words& zeroes(std::size_t count) {
    bytes_.resize(bytes_.size() + count);
    return *this;
  }
  Words& add(const Bytes_& other) {
    bytes_.insert(bytes_.end(), other.begin(), other.end());
    return *this;
  }
  Words& option(std::uint32_t option, const Bytes_& data = {}) {
    return u64(0x49484156454F5054).u32(option).u32(static_cast<std::uint32_t>(data.size())).add(data);
  }
  Words& reply(std::uint32_t option, std::uint32_t type, const Bytes_& data = {}) {
    return u64(0x0003E889045565A9).u32(option).u32(type).u32(static_cast<std::uint32_t>(data.size())).add(data);
  }
  operator const Bytes_&() const { return bytes_; }  // NOLINT(google-explicit-constructor): it is these bytes
  [[nodiscard]] std::size_t size() const { return bytes_.size(); }

 private:
  Bytes_ bytes_;
};

constexpr std::uint32_t kExportName = 1, kAbort = 2, kList = 3, kStartTls = 5, kInfo = 6, kGo = 7, kStructured = 8;
constexpr std::uint32_t kAck = 1, kServer = 2, kInfoReply = 3, kUnsupported = 0x80000001, kInvalid = 0x80000003,
                        kUnknown = 0x80000006;

Words greeting() {
  return Words().u64(0x4E42444D41474943).u64(0x49484156454F5054).u16(3);
}
Words about_export() {
  return Words().u16(0).u64(kAbout.size).u16(kAbout.flags);
}

struct Said {
  State state;
  Bytes_ output;
  std::size_t used;
};
/// In pieces of `cut` bytes.
Said feed(const Bytes_& input, std::size_t cut = ~std::size_t{0}) {
  Handshake handshake(kAbout);
  std::size_t used = 0;
  while (used < input.size()) {
    const auto piece = std::span(input).subspan(used, std::min(cut, input.size() - used));
    const std::size_t took = handshake.feed(piece);
    used += took;
    if (took < piece.size()) break;
  }
  return {handshake.state(), handshake.output(), used};
}

}  // namespace

TEST_CASE("GO is told the export and, if it asks, the block sizes; the first request is left alone") {
  const Bytes_ request = Words().u32(Command::kMagic).zeroes(24);
  const Bytes_ input = Words().u32(3).option(kGo, Words().u32(0).u16(2).u16(3).u16(1)).add(request);
  const Said said = feed(input);
  CHECK(said.state == State::transmission);
  CHECK(said.used == input.size() - request.size());
  CHECK(said.output == Bytes_(greeting()
                                  .reply(kGo, kInfoReply, about_export())
                                  .reply(kGo, kInfoReply, Words().u16(3).u32(512).u32(4096).u32(1U << 21))
                                  .reply(kGo, kAck)));
  const Said plain = feed(Words().u32(3).option(kGo, Words().u32(0).u16(0)));
  CHECK(plain.output == Bytes_(greeting().reply(kGo, kInfoReply, about_export()).reply(kGo, kAck)));
}

TEST_CASE("However the bytes are cut, the words are the same") {
  const Bytes_ input = Words()
                           .u32(1)
                           .option(kList)
                           .option(kStartTls)
                           .option(kInfo, Words().u32(0).u16(0))
                           .option(kStructured)
                           .option(kGo, Words().u32(0).u16(1).u16(3));
  const Said whole = feed(input);
  CHECK(whole.state == State::transmission);
  for (std::size_t cut = 1; cut < 40; ++cut) {
    const Said said = feed(input, cut);
    CHECK(said.output == whole.output);
    CHECK(said.state == State::transmission);
  }
}

TEST_CASE("EXPORT_NAME is followed by zeroes, unless the client wants none") {
  const Said with = feed(Words().u32(1).option(kExportName));
  CHECK(with.state == State::transmission);
  CHECK(with.output == Bytes_(greeting().u64(kAbout.size).u16(kAbout.flags).zeroes(124)));
  const Said without = feed(Words().u32(3).option(kExportName));
  CHECK(without.output == Bytes_(greeting().u64(kAbout.size).u16(kAbout.flags)));
}

TEST_CASE("The one export has the name \"\"; there is no other") {
  const Bytes_ other = Words().u32(1).number(std::uint8_t{'x'});
  CHECK(feed(Words().u32(3).option(kList)).output ==
        Bytes_(greeting().reply(kList, kServer, Words().u32(0)).reply(kList, kAck)));
  const Said asked = feed(Words().u32(3).option(kInfo, Words().add(other).u16(0)));
  CHECK(asked.output == Bytes_(greeting().reply(kInfo, kUnknown)));
  CHECK(asked.state == State::option);
  CHECK(feed(Words().u32(3).option(kExportName, Words().number(std::uint8_t{'x'}))).state == State::failed);
}

TEST_CASE("What is not known is refused, and the client may go on") {
  const std::uint32_t option = GENERATE(as<std::uint32_t>(), 0, 4, 5, 8, 9, 10, 11, 0xFFFFFFFF);
  const Said said = feed(Words().u32(3).option(option, Words().zeroes(17)).option(kList));
  CHECK(said.state == State::option);
  CHECK(said.output ==
        Bytes_(greeting().reply(option, kUnsupported).reply(kList, kServer, Words().u32(0)).reply(kList, kAck)));
}

TEST_CASE("Options whose lengths contradict each other are invalid") {
  const Bytes_ data =
      GENERATE(Bytes_(), Bytes_(Words().u32(0)), Bytes_(Words().u32(0xFFFFFFFF).u16(0)), Bytes_(Words().u32(1).u16(0)),
               Bytes_(Words().u32(0).u16(1)), Bytes_(Words().u32(0).u16(0).u16(0)), Bytes_(Words().u32(0).u16(0xFFFF)));
  const Said said = feed(Words().u32(3).option(kGo, data));
  CHECK(said.state == State::option);
  CHECK(said.output == Bytes_(greeting().reply(kGo, kInvalid)));
  CHECK(feed(Words().u32(3).option(kList, Words().u16(0))).output == Bytes_(greeting().reply(kList, kInvalid)));
}

TEST_CASE("ABORT is acknowledged, and nothing more is taken") {
  const Bytes_ input = Words().u32(3).option(kAbort).option(kList);
  const Said said = feed(input);
  CHECK(said.state == State::aborted);
  CHECK(said.used == 20);
  CHECK(said.output == Bytes_(greeting().reply(kAbort, kAck)));
}

TEST_CASE("Who does not speak this protocol is hung up on") {
  CHECK(feed(Words().u32(0)).state == State::failed);  // not fixed newstyle
  CHECK(feed(Words().u32(1U << 31 | 1)).state == State::failed);
  CHECK(feed(Words().u32(3).u64(0x1234).u32(kList).u32(0)).state == State::failed);
  CHECK(feed(Words().u32(3).u64(0x49484156454F5054).u32(kList).u32(0xFFFFFFFF)).state == State::failed);
  CHECK(feed(Words().u32(3).u64(0x49484156454F5054).u32(kList).u32(Handshake::kOptionMax + 1)).state == State::failed);
}

TEST_CASE("A flood of options ends, and so does what is answered") {
  Words input;
  input.u32(3);
  for (int i = 0; i < 100'000; ++i)
    input.option(kInfo, Words().u32(0).u16(1).u16(3));
  const Said said = feed(input);
  CHECK(said.state == State::failed);
  CHECK(said.output.size() < 64 * 200);
}

TEST_CASE("Whatever the bytes, it ends in one of its states and answers little") {
  Random random(7);
  for (int round = 0; round < 20'000; ++round) {
    Bytes_ input = Words().u32(3).option(kGo, Words().u32(0).u16(2).u16(3).u16(1)).option(kList).option(kExportName);
    for (std::uint64_t i = random.below(6); i > 0; --i)
      input[random.below(input.size())] = static_cast<std::byte>(random.below(256));
    input.resize(random.below(input.size() + 1));
    const Said said = feed(input, 1 + random.below(40));
    CHECK(said.used <= input.size());
    CHECK(said.output.size() < 1000);
  }
}
