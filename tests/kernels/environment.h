// Settings of the interpreter for the life of a scope.
#pragma once
#include <cstdlib>
#include <string>

struct InterpreterSetting {
  InterpreterSetting(const std::string& name, const std::string& value) : name_("OCTET_INTERPRETER_" + name) {
    if (const char* before = std::getenv(name_.c_str())) before_ = before;
    setenv(name_.c_str(), value.c_str(), 1);
  }
  ~InterpreterSetting() {
    if (before_.empty()) {
      unsetenv(name_.c_str());
    } else {
      setenv(name_.c_str(), before_.c_str(), 1);
    }
  }
  InterpreterSetting(const InterpreterSetting&) = delete;
  InterpreterSetting& operator=(const InterpreterSetting&) = delete;

 private:
  std::string name_, before_;
};

inline const char* const schedules[] = {"ascending", "descending", "shuffled:1", "shuffled:2"};
