// Arrays of Python as borrowed buffers, with their types and sizes checked.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace {

namespace py = pybind11;

// A borrowed C-contiguous buffer of one of a few element types.
class View {
  public:
    View() = default;
    View(const py::handle& object, const char* formats, bool writable, const char* name) {
        const int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(object.ptr(), &buffer_, flags) != 0) throw py::error_already_set();
        held_ = true;
        const char* format = buffer_.format ? buffer_.format : "B";
        if (*format == '=' || *format == '<' || *format == '@') ++format;
        if (std::strlen(format) != 1 || !std::strchr(formats, *format))
            throw std::invalid_argument(std::string(name) + ": element type '" + format + "', wanted one of '" +
                                        formats + "'");
    }
    View(View&& other) noexcept : buffer_(other.buffer_), held_(other.held_) { other.held_ = false; }
    View(const View&) = delete;
    View& operator=(const View&) = delete;
    View& operator=(View&&) = delete;
    ~View() {
        if (held_) PyBuffer_Release(&buffer_);
    }
    template <class T> T* data() const { return held_ ? static_cast<T*>(buffer_.buf) : nullptr; }
    int64_t size() const { return held_ ? buffer_.len / buffer_.itemsize : 0; }
    int32_t itemsize() const { return held_ ? static_cast<int32_t>(buffer_.itemsize) : 0; }

  private:
    Py_buffer buffer_{};
    bool held_ = false;
};

View view(const py::handle& object, const char* formats, bool writable, int64_t size, const char* name) {
    if (object.is_none()) return View();
    View v(object, formats, writable, name);
    if (v.size() != size)
        throw std::invalid_argument(std::string(name) + ": " + std::to_string(v.size()) + " elements, wanted " +
                                    std::to_string(size));
    return v;
}

View required(const py::handle& object, const char* formats, int64_t size, const char* name) {
    if (object.is_none()) throw std::invalid_argument(std::string(name) + " is required");
    return view(object, formats, false, size, name);
}

} // namespace
